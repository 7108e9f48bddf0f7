//! Pictures beside the prompt, seen by Redux: the flags for them.

use std::path::PathBuf;

use clap::Args;
use flux::{
    Request,
    recipe::Lost,
    styles::{MAX_STYLES, Style, USUAL_WEIGHT},
};

/// Pictures for Redux.
#[derive(Args, Clone)]
#[command(next_help_heading = "Pictures beside the prompt")]
pub(crate) struct StyleArgs {
    /// Make a variation of a picture, with FLUX.1 Redux; the prompt may be left out
    #[arg(long, value_name = "IMAGE")]
    redux: Option<PathBuf>,
    /// Follow the style of a picture, with FLUX.1 Redux; how much it counts from 0 to 1 [default: 0.7]; up to three times
    #[arg(long, value_name = "IMAGE[:WEIGHT]")]
    style: Vec<String>,
}

impl StyleArgs {
    /// Whether the prompt may be left out.
    pub(crate) fn speaks_for_itself(&self) -> bool {
        self.redux.is_some()
    }

    /// Whether any picture is given.
    pub(crate) fn is_given(&self) -> bool {
        self.redux.is_some() || !self.style.is_empty()
    }

    /// The flags that have to give again what is lost.
    pub(crate) fn missing(&self, lost: &Lost) -> Vec<String> {
        let redux = (lost.redux && self.redux.is_none()).then(|| "--redux FILE".to_owned());
        let styles = lost.styles.iter().skip(self.style.len()).map(|weight| format!("--style FILE:{weight}"));
        redux.into_iter().chain(styles).collect()
    }

    /// Puts what was said into a request.
    ///
    /// # Errors
    /// [`flux::Error::Asked`] naming the flag and the file.
    pub(crate) fn apply(&self, request: &mut Request) -> flux::Result<()> {
        if self.style.len() > MAX_STYLES {
            let problem = format!("{} are given; at most {MAX_STYLES} are possible", self.style.len());
            return Err(flux::Error::Asked { field: "style", problem, hint: None });
        }
        if let Some(path) = &self.redux {
            request.redux = Some(flux::image_file::open("redux", path)?.picture);
        }
        for text in &self.style {
            let (path, weight) = split(text);
            if !(0.0..=1.0).contains(&weight) {
                let problem = format!("'{text}' has the weight {weight}; 0 to 1 are possible");
                return Err(flux::Error::Asked { field: "style", problem, hint: None });
            }
            let picture = flux::image_file::open("style", &path)?.picture;
            request.styles.push(Style { picture, weight });
        }
        Ok(())
    }
}

/// `picture.png:0.5` → its path and weight. A file may have a colon in its name: then that is meant.
fn split(text: &str) -> (PathBuf, f32) {
    let whole = PathBuf::from(text);
    if !whole.exists()
        && let Some((path, weight)) = text.rsplit_once(':')
        && let Ok(weight) = weight.parse()
    {
        return (path.into(), weight);
    }
    (whole, USUAL_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_behind_the_last_colon() {
        assert_eq!(split("a.png"), ("a.png".into(), USUAL_WEIGHT));
        assert_eq!(split("C:\\a.png"), ("C:\\a.png".into(), USUAL_WEIGHT));
        assert_eq!(split("a:b.png:0.25"), ("a:b.png".into(), 0.25));
        assert_eq!(split("a.png:2"), ("a.png".into(), 2.0));
    }
}
