//! Names of output files, and writing them whole or not at all.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use flux::image_file::Format;

use crate::Usage;

/// A name with `{seed}` and `{index}` to be filled in.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    name: String,
    format: Format,
    /// A name that nobody chose never replaces a file.
    chosen: bool,
}

impl Template {
    /// What `-o` says; several pictures get `-{seed}` where the name does not tell them apart.
    pub(crate) fn new(name: Option<&str>, format: Format, batch: u32) -> Self {
        let chosen = name.is_some();
        let name = name.map_or_else(|| format!("darkroom-{{seed}}.{}", format.extension()), str::to_owned);
        Self { name: told_apart(name, batch), format, chosen }
    }

    /// A name that nobody chose.
    pub(crate) fn unchosen(name: &str, format: Format) -> Self {
        Self { name: name.to_owned(), format, chosen: false }
    }

    /// The same for latents, always as named.
    pub(crate) fn of_latents(name: &str, batch: u32) -> Self {
        Self { name: told_apart(name.to_owned(), batch), format: Format::Png, chosen: true }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn is_stdout(&self) -> bool {
        self.name == "-"
    }

    /// The name of one picture.
    pub(crate) fn path(&self, seed: u64, index: u32) -> PathBuf {
        self.name.replace("{seed}", &seed.to_string()).replace("{index}", &index.to_string()).into()
    }

    /// As [`Template::path`], but not the name of a file that is there unless it was asked for.
    pub(crate) fn free_path(&self, seed: u64, index: u32) -> PathBuf {
        let path = self.path(seed, index);
        if self.chosen || !path.exists() {
            return path;
        }
        (2..u32::MAX).map(|n| with_suffix(&path, &format!("-{n}"))).find(|path| !path.exists()).unwrap_or(path)
    }

    /// Where previews go.
    pub(crate) fn preview_path(&self, seed: u64) -> PathBuf {
        with_suffix(&self.path(seed, 0), ".preview").with_extension("png")
    }
}

/// The format that is asked for, or that the output's name says.
pub(crate) fn format(asked: Option<Format>, output: Option<&str>) -> Result<Format, Usage> {
    let extension = |name: &str| Path::new(name).extension().and_then(|e| e.to_str()).map(str::to_owned);
    match (asked, output.filter(|name| *name != "-").and_then(extension)) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(Format::Png),
        (None, Some(extension)) => extension.parse().map_err(|_| {
            let formats = "png, jpeg, webp, avif and gif are";
            Usage(format!("--output: '{extension}' is not a picture format; {formats}; hint: --format"))
        }),
    }
}

fn told_apart(name: String, batch: u32) -> String {
    if batch <= 1 || name == "-" || name.contains("{seed}") || name.contains("{index}") {
        return name;
    }
    with_suffix(Path::new(&name), "-{seed}").to_string_lossy().into_owned()
}

/// `a/b.png` → `a/b<suffix>.png`.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}{suffix}{extension}"))
}

/// Writes a file whole or not at all: under another name first, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".darkroom-").suffix(".tmp").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    #[cfg(unix)]
    {
        // Temporary files are private; a picture has the permissions of any other new file.
        use std::os::unix::fs::PermissionsExt;
        let mode = path.metadata().map_or(0o644, |m| m.permissions().mode() & 0o777);
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_told_apart() {
        let name = |name: Option<&str>, batch| Template::new(name, Format::Png, batch).path(7, 1).display().to_string();
        assert_eq!(name(None, 1), "darkroom-7.png");
        assert_eq!(name(Some("out/a.png"), 1), "out/a.png");
        assert_eq!(name(Some("out/a.png"), 2), "out/a-7.png");
        assert_eq!(name(Some("out/{index}.png"), 2), "out/1.png");
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a.bin");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
