//! Addresses, folders and the token, as Hugging Face's own tools find them: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_HUB_OFFLINE`. and those of proxies. The caller looks variables up; none is read here.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::error::{Error, Result};

/// The public hub.
pub const ENDPOINT: &str = "https://huggingface.co";

/// The longest token file that is read, bytes.
const LONGEST_TOKEN: u64 = 4096;

/// Where things are and how patient to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://huggingface.co`, or a mirror; without a slash at the end.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<Token>,
    /// The hub's cache: the folder with `models--…` in it.
    pub cache: PathBuf,
    /// Where acceptances and records are kept.
    pub data: PathBuf,
    /// Nothing may be asked.
    pub offline: bool,
    /// What stands between here and the hub, if it is not on this machine.
    pub proxy: Option<Proxy>,
    /// How patient to be.
    pub patience: Patience,
}

/// How long to wait for a slow or broken network.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often in a row a request may fail without a byte of progress.
    pub attempts: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub first_wait: Duration,
    /// The longest `Retry-After` that is waited for.
    pub longest_wait: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_mins(5),
            silence: Duration::from_secs(30),
        }
    }
}

/// A token and where it came from. Its text appears in no message.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    /// `HF_TOKEN`, or a file.
    pub source: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(… from {})", self.source)
    }
}

impl Token {
    /// A token from a variable or file; `None` if there is nothing but blanks.
    ///
    /// # Errors
    /// [`Error::Asked`] if it cannot be a token.
    pub fn new(text: &str, source: impl Into<String>) -> Result<Option<Self>> {
        let (text, source) = (text.trim(), source.into());
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > 1000 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::asked(
                "token",
                format!("what {source} holds is not a token; expected one word, such as hf_…"),
            ));
        }
        Ok(Some(Self { text: text.to_owned(), source }))
    }

    /// The token in a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Asked`] if it holds none.
    pub fn from_file(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?.len();
        if length > LONGEST_TOKEN {
            return Err(Error::file(path, format!("is {length} bytes long; expected a file with a token alone")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        Self::new(&text, format!("'{}'", path.display()))?.ok_or_else(|| Error::file(path, "holds no token"))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.text)
    }
}

/// A proxy. Its address may have a password in it, and appears in no message.
#[derive(Clone)]
pub struct Proxy(pub(crate) ureq::Proxy);

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy(…)")
    }
}

impl Proxy {
    /// The one that `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY` names, but not for the hosts of `NO_PROXY`; their names may be in
    /// small letters.
    ///
    /// # Errors
    /// [`Error::Asked`] naming the variable that has no address of a proxy.
    pub fn from_environment(look_up: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let var = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            names.iter().find_map(|name| look_up(name).filter(|value| !value.trim().is_empty()))
        };
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
            if let Some(address) = var(name) {
                let known = "expected http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT";
                let wrong = |_| Error::asked(name, format!("is not the address of a proxy; {known}"));
                return except(&address, &var("NO_PROXY").unwrap_or_default())
                    .map(|found| Some(Self(found)))
                    .map_err(wrong);
            }
        }
        Ok(None)
    }
}

/// The proxy at an address, but not for these hosts: a list with commas.
fn except(address: &str, hosts: &str) -> std::result::Result<ureq::Proxy, ureq::Error> {
    let read = ureq::Proxy::new(address.trim())?;
    let mut proxy =
        ureq::Proxy::builder(read.protocol()).host(read.host()).port(read.port()).resolve_target(read.resolve_target());
    if let Some(user) = read.username() {
        proxy = proxy.username(user);
    }
    if let Some(password) = read.password() {
        proxy = proxy.password(password);
    }
    hosts.split(',').map(str::trim).fold(proxy, ureq::ProxyBuilder::no_proxy).build()
}

impl Settings {
    /// From the environment. `look_up` gives a variable's value; an empty one counts as none.
    ///
    /// # Errors
    /// [`Error::Asked`] naming the variable that cannot be used.
    pub fn from_environment(look_up: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let var = |name: &str| look_up(name).filter(|value| !value.trim().is_empty());
        let cache = cache_folder(&look_up)
            .ok_or_else(|| Error::asked("HF_HUB_CACHE", "is not set, and neither are HF_HOME and HOME"))?;
        let data =
            data_folder(&look_up).ok_or_else(|| Error::asked("DARKROOM_DATA", "is not set, and neither is HOME"))?;

        let mut token = None;
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if token.is_none() {
                token = Token::new(&var(name).unwrap_or_default(), name)?;
            }
        }
        let file = folder(&look_up, "HF_TOKEN_PATH").or_else(|| Some(hf_home(&look_up)?.join("token")));
        if let (None, Some(file)) = (&token, file)
            && file.is_file()
        {
            token = Some(Token::from_file(&file)?);
        }
        let truth =
            |name: &str| var(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()));
        Ok(Self {
            endpoint: check_endpoint(&var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()))?,
            token,
            cache,
            data,
            offline: truth("HF_HUB_OFFLINE"),
            proxy: Proxy::from_environment(&look_up)?,
            patience: Patience::default(),
        })
    }

    /// The page of a repository, for people.
    pub fn page(&self, repository: &str) -> String {
        format!("{}/{repository}", self.endpoint)
    }
}

/// A variable that names a file or folder. `~` is not opened by every shell in `VAR=~/x`, and Hugging Face's tools open it.
fn folder(look_up: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(look_up(name).filter(|value| !value.trim().is_empty())?);
    match (path.strip_prefix("~"), home(look_up)) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

fn home(look_up: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let var = |name: &str| look_up(name).filter(|value| !value.trim().is_empty()).map(PathBuf::from);
    var("HOME").or_else(|| var("USERPROFILE"))
}

fn hf_home(look_up: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let caches = || folder(look_up, "XDG_CACHE_HOME").or_else(|| Some(home(look_up)?.join(".cache")));
    folder(look_up, "HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
}

/// The hub's cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
pub fn cache_folder(look_up: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| folder(look_up, name));
    named.or_else(|| Some(hf_home(look_up)?.join("hub")))
}

/// Where records and acceptances are kept: `DARKROOM_DATA`, or `darkroom` in the user's folder for data.
pub fn data_folder(look_up: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let usual = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
    let users = folder(look_up, "XDG_DATA_HOME").or_else(|| folder(look_up, "LOCALAPPDATA"));
    let users = || users.or_else(|| Some(home(look_up)?.join(usual)));
    folder(look_up, "DARKROOM_DATA").or_else(|| Some(users()?.join("darkroom")))
}

fn check_endpoint(text: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains('@') && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(text.to_owned())
        }
        _ => Err(Error::asked(
            "HF_ENDPOINT",
            format!("'{text}' is not a valid address; expected for example {ENDPOINT}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(set: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_environment(|name| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_count_as_in_hugging_faces_tools() {
        let s = settings(&[("HOME", "/h")]).unwrap();
        assert_eq!((s.endpoint.as_str(), s.offline, s.token), (ENDPOINT, false, None));
        assert_eq!(s.cache, Path::new("/h/.cache/huggingface/hub"));
        let s = settings(&[
            ("HOME", "/h"),
            ("HF_HOME", "~/hf"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_ENDPOINT", "https://m.org/"),
        ]);
        let s = s.unwrap();
        assert_eq!(
            (s.cache.as_path(), s.offline, s.endpoint.as_str()),
            (Path::new("/h/hf/hub"), true, "https://m.org")
        );
        let s =
            settings(&[("HF_HUB_CACHE", "/c"), ("DARKROOM_DATA", "/d"), ("HF_TOKEN", " "), ("HF_HUB_OFFLINE", "0")]);
        let s = s.unwrap();
        assert_eq!(
            (s.cache.as_path(), s.data.as_path(), s.token, s.offline),
            (Path::new("/c"), Path::new("/d"), None, false)
        );
        assert!(settings(&[]).is_err());
        for bad in ["huggingface.co", "ftp://a", "https://", "https://user:secret@a", "https://a b"] {
            let told = settings(&[("HOME", "/h"), ("HF_ENDPOINT", bad)]).unwrap_err().to_string();
            assert!(told.starts_with("HF_ENDPOINT: "), "{told}");
        }
    }

    #[test]
    fn a_token_comes_from_a_variable_or_a_file_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let token = |set: &[(&str, &str)]| {
            settings(&[&[("HF_HOME", home), ("DARKROOM_DATA", "/d")], set].concat()).unwrap().token
        };
        assert_eq!(token(&[]).unwrap().header(), "Bearer hf_file");
        let both = token(&[("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")]).unwrap();
        assert_eq!((both.header().as_str(), both.source.as_str()), ("Bearer hf_a", "HF_TOKEN"));
        assert!(!format!("{both:?}").contains("hf_a"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_b")]).unwrap().header(), "Bearer hf_b");
        let bad = settings(&[("HOME", "/h"), ("HF_TOKEN", "two words")]).unwrap_err().to_string();
        assert!(bad.contains("HF_TOKEN") && !bad.contains("two words"), "{bad}");
    }
    #[test]
    fn a_proxy_comes_from_variables_and_is_never_shown() {
        let with = |set: &[(&str, &str)]| settings(&[&[("HOME", "/h")], set].concat());
        assert!(with(&[]).unwrap().proxy.is_none());
        let proxies = [("https_proxy", "http://me:s%40cret@proxy.example:3128"), ("HTTP_PROXY", "http://other:1")];
        let proxy = with(&[&proxies[..], &[("NO_PROXY", "a.example, .b.example")]].concat()).unwrap().proxy.unwrap();
        assert_eq!((proxy.0.host(), proxy.0.port(), proxy.0.password()), ("proxy.example", 3128, Some("s@cret")));
        let around = |address: &str| proxy.0.is_no_proxy(&address.parse().unwrap());
        assert!(around("https://a.example/x") && around("https://c.b.example") && !around("https://huggingface.co"));
        assert!(!format!("{proxy:?}").contains("cret"));
        assert_eq!(with(&[("ALL_PROXY", "socks5://p:9"), proxies[0]]).unwrap().proxy.unwrap().0.host(), "p");
        let bad = with(&[("HTTPS_PROXY", "gopher://s3cret")]).unwrap_err().to_string();
        assert!(bad.starts_with("HTTPS_PROXY: ") && !bad.contains("s3cret"), "{bad}");
    }
}
