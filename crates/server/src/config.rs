//! How the server is set up: flags go before the environment (`DARKROOM_…`), that before a TOML file, that before defaults.
//!
//! One table, [`SETTINGS`], reads all of them, shows what is in force and where it came from, and says which names there are.
//! A name that is not in the table is refused. This is the one module of the crate that learns of the environment, through a
//! function that is handed in.

mod s3;
mod values;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use flux::image_file::MetadataLevel;
use ipnet::IpNet;
use toml::Table;
pub use toml::Value;

pub use s3::S3;
use values::Set;
pub(crate) use values::time;
pub use values::{Arithmetic, LogFormat, NotASize, Secret, Size, VendorOutput};

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen for plain HTTP.
    pub listen: SocketAddr,
    /// TLS beside it.
    pub tls: Tls,
    /// What clients call this server: begins every URL in answers. Without it, what the request says.
    pub public_url: Option<String>,
    /// Whether `X-Forwarded-Proto` and `X-Forwarded-Host` are believed.
    pub trust_proxy: bool,
    /// Journal, pictures, keys.
    pub data_dir: PathBuf,
    /// Keys beside those in the journal.
    pub api_keys: Vec<Secret>,
    /// Names that clients may call this server by, beside `localhost`, addresses and the public URL's.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may ask; `*`: all.
    pub cors_origins: Vec<String>,
    /// Whether webhooks may go to private addresses.
    pub allow_private_webhooks: bool,
    /// Whether pictures may be fetched from private addresses.
    pub allow_private_fetches: bool,
    /// Private networks that pictures and webhooks may reach all the same.
    pub allowed_networks: Vec<IpNet>,
    /// Models served: names or paths, as for `-m`. None: the model in the box.
    pub models: Vec<String>,
    /// Other names of models.
    pub aliases: BTreeMap<String, String>,
    /// Folder with LoRAs that requests may name.
    pub loras: Option<PathBuf>,
    /// How long a model stays loaded after its last use.
    pub keep_alive: Duration,
    /// Most memory that models may take.
    pub memory_limit: Option<Size>,
    /// Threads that compute.
    pub threads: Option<u16>,
    /// Arithmetic: auto, f32, bf16, int8.
    pub precision: Arithmetic,
    /// What is written into pictures about their making.
    pub metadata: MetadataLevel,
    /// How Replicate's outputs are given.
    pub replicate_output: VendorOutput,
    /// How long a stop may take until running work is put back into the queue.
    pub drain: Duration,
    /// Sizes and times.
    pub limits: Limits,
    /// How many may wait.
    pub queue: QueueBounds,
    /// Finished jobs.
    pub jobs: KeptJobs,
    /// Pictures and uploads.
    pub store: Store,
    /// Instead of a folder for pictures.
    pub s3: S3,
    /// The gates for prompts and pictures.
    pub safety: Safety,
    /// What is logged.
    pub log: Log,
}

/// TLS beside plain HTTP.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// The certificate and its chain, PEM.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// A folder with a development CA, made if it is not there.
    pub dev: Option<PathBuf>,
}

/// Sizes and times of what comes in.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body.
    pub body: Size,
    /// The largest body of an upload or a form.
    pub upload: Size,
    /// All bodies that are being read, together.
    pub bodies: Size,
    /// The largest picture that is fetched.
    pub fetch: Size,
    /// How long a picture may take to come.
    pub fetch_time: Duration,
    /// How long a client may be silent while it sends.
    pub silence: Duration,
}

/// How many jobs may be there that have not ended.
#[derive(Clone, Debug)]
pub struct QueueBounds {
    /// All.
    pub total: usize,
    /// Of one key.
    pub per_key: usize,
    /// All their requests together; pictures sent in them count until they are in the store.
    pub bytes: Size,
}

/// How long finished jobs can be asked for.
#[derive(Clone, Debug)]
pub struct KeptJobs {
    /// At most so long.
    pub keep: Duration,
    /// At most so many.
    pub count: usize,
}

/// How long files are kept.
#[derive(Clone, Debug)]
pub struct Store {
    /// All files together.
    pub quota: Size,
    /// A result at most, whatever a request asks for.
    pub results: Duration,
    /// An upload.
    pub uploads: Duration,
}

/// The gates.
#[derive(Clone, Debug)]
pub struct Safety {
    /// Whether prompts are looked at.
    pub prompts: bool,
    /// The operator's own words.
    pub words: Option<PathBuf>,
    /// Whether pictures are looked at.
    pub pictures: bool,
    /// From which score on a picture is flagged; none: the gate's own.
    pub threshold: Option<f64>,
    /// Whether a request may switch the gate for pictures off.
    pub optional: bool,
    /// How long a flagged picture is kept for a person to look at; none: it is not kept.
    pub hold: Option<Duration>,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// A level, or levels by module: `info,server=debug`.
    pub filter: String,
    /// For people or for programs.
    pub format: LogFormat,
}

const MIB: u64 = 1 << 20;
const DAY: Duration = Duration::from_hours(24);

impl Config {
    /// What is in force where nothing is said. `data_dir`: the user's folder for data, if there is one.
    fn new(data_dir: PathBuf) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            tls: Tls::default(),
            public_url: None,
            trust_proxy: false,
            data_dir,
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            allow_private_webhooks: false,
            allow_private_fetches: false,
            allowed_networks: Vec::new(),
            models: Vec::new(),
            aliases: BTreeMap::new(),
            loras: None,
            keep_alive: Duration::from_mins(30),
            memory_limit: None,
            threads: None,
            precision: Arithmetic(None),
            metadata: MetadataLevel::Full,
            replicate_output: VendorOutput::Auto,
            drain: Duration::from_secs(30),
            limits: Limits {
                body: Size(64 * MIB),
                upload: Size(256 * MIB),
                bodies: Size(1024 * MIB),
                fetch: Size(50 * MIB),
                fetch_time: Duration::from_secs(15),
                silence: Duration::from_secs(30),
            },
            queue: QueueBounds { total: 1000, per_key: 250, bytes: Size(256 << 20) },
            jobs: KeptJobs { keep: 7 * DAY, count: 10_000 },
            store: Store { quota: Size(10 * 1024 * MIB), results: 30 * DAY, uploads: 7 * DAY },
            s3: S3::default(),
            safety: Safety { prompts: true, words: None, pictures: true, threshold: None, optional: true, hold: None },
            log: Log { filter: "info".into(), format: LogFormat::Text },
        }
    }

    /// The settings in which this differs from another.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static Setting> + 'a {
        SETTINGS.iter().filter(|setting| !(setting.same)(self, other))
    }

    /// All defaults, with a data folder: for tests and for programs that have no flags.
    pub fn in_folder(data_dir: impl Into<PathBuf>) -> Self {
        Self::new(data_dir.into())
    }
}

/// One thing that can be set.
pub struct Setting {
    /// As in the file: `tls.listen`. The environment's name is `DARKROOM_TLS_LISTEN`.
    pub name: &'static str,
    /// One sentence for people.
    pub about: &'static str,
    set: fn(&mut Config, &Value) -> Result<(), String>,
    show: fn(&Config) -> Option<Value>,
    same: fn(&Config, &Config) -> bool,
}

impl Setting {
    /// Whether a server that runs follows it when its configuration is read again; the others want a restart.
    pub fn is_live(&self) -> bool {
        matches!(self.name, "models" | "aliases" | "loras" | "keep_alive" | "memory_limit")
            || self.name.starts_with("safety.")
    }
}

macro_rules! settings {
    ($($name:literal => $($field:ident).+: $about:literal,)*) => {
        &[$(Setting {
            name: $name,
            about: $about,
            set: |config, value| Ok(config.$($field).+ = Set::read(value)?),
            show: |config| config.$($field).+.show(),
            same: |one, other| one.$($field).+ == other.$($field).+,
        }),*]
    };
}

/// All there are.
pub const SETTINGS: &[Setting] = settings! {
    "listen" => listen: "where to listen for plain HTTP; beyond this machine only with keys",
    "tls.listen" => tls.listen: "where to listen for HTTPS",
    "tls.cert" => tls.cert: "the certificate and its chain, PEM",
    "tls.key" => tls.key: "the certificate's private key, PEM",
    "tls.dev" => tls.dev: "a folder with a development CA, made if it is not there",
    "public_url" => public_url: "what clients call this server; begins every URL in answers",
    "trust_proxy" => trust_proxy: "whether X-Forwarded-Proto and X-Forwarded-Host are believed",
    "data_dir" => data_dir: "the folder of the journal, the pictures and the keys",
    "api_keys" => api_keys: "keys beside those of `darkroom keys`",
    "allowed_hosts" => allowed_hosts: "names of this server beside localhost, addresses and the public URL's",
    "cors_origins" => cors_origins: "origins whose pages may ask, as https://app.example; * is all",
    "allow_private_webhooks" => allow_private_webhooks: "whether webhooks may go to private addresses",
    "allow_private_fetches" => allow_private_fetches: "whether pictures may be fetched from private addresses",
    "allowed_networks" => allowed_networks: "private networks that may be reached all the same, as 192.168.7.0/24",
    "models" => models: "what is served: names or paths as for -m; none is the model in the box",
    "aliases" => aliases: "other names of models: alias = \"model\"",
    "loras" => loras: "a folder with LoRAs that requests may name",
    "keep_alive" => keep_alive: "how long a model stays loaded after its last use; never: for good",
    "memory_limit" => memory_limit: "the most memory that models may take",
    "threads" => threads: "threads that compute; all cores if not set",
    "precision" => precision: "arithmetic of products: auto, f32, bf16, int8",
    "metadata" => metadata: "what pictures tell of their making: full, minimal, none",
    "replicate_output" => replicate_output: "Replicate's outputs: url, data, auto (URLs if the public URL is https)",
    "drain" => drain: "how long a stop may take until running work is put back into the queue",
    "limits.body" => limits.body: "the largest body of a request",
    "limits.upload" => limits.upload: "the largest upload or form",
    "limits.bodies" => limits.bodies: "all bodies that are being read, together",
    "limits.fetch" => limits.fetch: "the largest picture that is fetched",
    "limits.fetch_time" => limits.fetch_time: "how long a picture may take to come",
    "limits.silence" => limits.silence: "how long a client may be silent while it sends",
    "queue.total" => queue.total: "most jobs that have not ended",
    "queue.per_key" => queue.per_key: "most jobs of one key that have not ended",
    "queue.bytes" => queue.bytes: "their requests in memory, together; pictures sent in them count until they are stored",
    "jobs.keep" => jobs.keep: "how long a finished job can be asked for",
    "jobs.count" => jobs.count: "most finished jobs that are kept",
    "store.quota" => store.quota: "all files together",
    "store.results" => store.results: "the longest that a result is kept, whatever a request asks for",
    "store.uploads" => store.uploads: "how long an upload is kept",
    "s3.bucket" => s3.bucket: "a bucket instead of a folder for pictures",
    "s3.prefix" => s3.prefix: "what every object's name begins with",
    "s3.region" => s3.region: "the bucket's region",
    "s3.endpoint" => s3.endpoint: "another service than Amazon's",
    "s3.access_key_id" => s3.access_key_id: "credentials; AWS_ACCESS_KEY_ID if not set",
    "s3.secret_access_key" => s3.secret_access_key: "credentials; AWS_SECRET_ACCESS_KEY if not set",
    "s3.session_token" => s3.session_token: "credentials that are temporary; AWS_SESSION_TOKEN if not set",
    "safety.prompts" => safety.prompts: "whether prompts are looked at before they are drawn",
    "safety.words" => safety.words: "a file of the operator's own words, one a line",
    "safety.pictures" => safety.pictures: "whether pictures are looked at before they leave",
    "safety.threshold" => safety.threshold: "the score from which on a picture is flagged, 0 to 1",
    "safety.optional" => safety.optional: "whether a request may switch the gate for pictures off",
    "safety.hold" => safety.hold: "how long flagged pictures are kept for a person to look at, as 7d; not set: not at all",
    "log.filter" => log.filter: "a level, or levels by module: info,server=debug",
    "log.format" => log.format: "text or json",
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File(PathBuf),
    /// A variable of the environment, by name.
    Environment(String),
    /// A flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// A file that cannot be read.
    #[error("{}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A name that is not in the table.
    #[error("{}: '{name}' is no setting{hint}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// As it is written there.
        name: String,
        /// The nearest one, or nothing.
        hint: String,
    },
    /// A value that cannot be.
    #[error("{name} ({origin}): {message}")]
    Value {
        /// The setting.
        name: String,
        /// Where it was set.
        origin: Origin,
        /// What was expected.
        message: String,
    },
    /// Settings that do not go together.
    #[error("{0}")]
    Conflict(String),
}

/// Where values are looked for.
pub struct Sources<'a> {
    /// By name, as in the file.
    pub flags: Vec<(&'static str, Value)>,
    /// The environment.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The file that `--config` names. Without it `DARKROOM_CONFIG`, then `darkroom/config.toml` in the user's folder for
    /// configuration, if it is there.
    pub file: Option<PathBuf>,
}

/// What is in force, and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// For each setting that was set.
    pub origins: BTreeMap<&'static str, Origin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

impl Loaded {
    /// Reads all sources and checks that what they say goes together.
    ///
    /// # Errors
    /// [`Wrong`], for the operator.
    pub fn read(sources: Sources<'_>) -> Result<Self, Wrong> {
        let var = |name: &str| (sources.environment)(name).filter(|value| !value.trim().is_empty());
        let (named, file) = match sources.file.or_else(|| var("DARKROOM_CONFIG").map(PathBuf::from)) {
            Some(path) => (true, Some(path)),
            None => (false, usual_file(&var)),
        };
        let file = file.filter(|path| named || path.is_file());
        let mut this = Self { config: Config::new(usual_data(&var)), origins: BTreeMap::new(), file };
        if let Some(path) = this.file.clone() {
            let wrong = |message: String| Wrong::File { path: path.clone(), message };
            let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
            let table: Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
            this.read_table("", &table, &path)?;
        }
        for setting in SETTINGS {
            let name = variable(setting.name);
            if let Some(text) = var(&name) {
                this.set(setting, &Value::String(text), Origin::Environment(name))?;
            }
        }
        for (name, value) in sources.flags {
            let setting = find(name).ok_or_else(|| Wrong::Conflict(format!("'{name}' is no setting")))?;
            this.set(setting, &value, Origin::Flag)?;
        }
        this.amazons(&var);
        check(&this.config)?;
        Ok(this)
    }

    fn read_table(&mut self, before: &str, table: &Table, path: &Path) -> Result<(), Wrong> {
        for (key, value) in table {
            let name = if before.is_empty() { key.clone() } else { format!("{before}.{key}") };
            if let Some(setting) = find(&name) {
                self.set(setting, value, Origin::File(path.to_owned()))?;
            } else if let (Value::Table(inner), true) = (value, before.is_empty() && is_section(&name)) {
                self.read_table(&name, inner, path)?;
            } else {
                let hint = nearest(&name).map(|near| format!("; hint: perhaps '{near}'")).unwrap_or_default();
                return Err(Wrong::Unknown { path: path.to_owned(), name, hint });
            }
        }
        Ok(())
    }

    fn set(&mut self, setting: &'static Setting, value: &Value, origin: Origin) -> Result<(), Wrong> {
        if let Err(message) = (setting.set)(&mut self.config, value) {
            return Err(Wrong::Value { name: setting.name.into(), origin, message });
        }
        self.origins.insert(setting.name, origin);
        Ok(())
    }

    /// Amazon's own names, where ours say nothing.
    fn amazons(&mut self, var: &dyn Fn(&str) -> Option<String>) {
        let s3 = &mut self.config.s3;
        let mut fill = |name: &'static str, variable: &str, set: &mut dyn FnMut(String)| {
            if !self.origins.contains_key(name)
                && let Some(text) = var(variable).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
            {
                set(text);
                self.origins.insert(name, Origin::Environment(variable.into()));
            }
        };
        fill("s3.access_key_id", "AWS_ACCESS_KEY_ID", &mut |text| s3.access_key_id = Some(text));
        fill("s3.secret_access_key", "AWS_SECRET_ACCESS_KEY", &mut |text| s3.secret_access_key = Some(Secret(text)));
        fill("s3.session_token", "AWS_SESSION_TOKEN", &mut |text| s3.session_token = Some(Secret(text)));
        fill("s3.region", "AWS_REGION", &mut |text| s3.region = Some(text));
    }

    /// What is in force as a file that can be read again, but for secrets. `origins`: with a comment on each line that says where
    /// it came from.
    pub fn show(&self, origins: bool) -> String {
        let mut text = String::new();
        let mut section = "";
        let line = |setting: &Setting, key: &str| {
            let value = match (setting.show)(&self.config) {
                Some(value) => format!("{key} = {value}"),
                None => format!("# {key} is not set"),
            };
            let origin = self.origins.get(setting.name).unwrap_or(&Origin::Default);
            if origins { format!("{value:<50} # {origin}\n") } else { format!("{value}\n") }
        };
        // A file's names without a section have to come first.
        for setting in SETTINGS.iter().filter(|setting| !setting.name.contains('.')) {
            text += &line(setting, setting.name);
        }
        for setting in SETTINGS {
            let Some((of, key)) = setting.name.split_once('.') else { continue };
            if of != section {
                text.extend(["\n[", of, "]\n"]);
                section = of;
            }
            text += &line(setting, key);
        }
        text
    }
}

/// The environment's name of a setting.
pub fn variable(name: &str) -> String {
    format!("DARKROOM_{}", name.replace('.', "_").to_uppercase())
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name.split_once('.').is_some_and(|(section, _)| section == name))
}

/// What was probably meant: at most two letters away.
fn nearest(name: &str) -> Option<&'static str> {
    let all = SETTINGS.iter().map(|setting| setting.name);
    let (distance, near) = all.map(|other| (edits(name, other), other)).min()?;
    (distance <= 2).then_some(near)
}

/// How many letters have to be added, taken away or replaced.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let least = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], least);
        }
    }
    row[b.len()]
}

type Var<'a> = &'a dyn Fn(&str) -> Option<String>;

fn home(var: Var<'_>) -> Option<PathBuf> {
    var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from)
}

fn usual_file(var: Var<'_>) -> Option<PathBuf> {
    let users = var("XDG_CONFIG_HOME").or_else(|| var("APPDATA")).map(PathBuf::from);
    let users = users.or_else(|| Some(home(var)?.join(".config")))?;
    Some(users.join("darkroom").join("config.toml"))
}

/// Beside the records of downloaded models: `DARKROOM_DATA`, or `darkroom` in the user's folder for data.
fn usual_data(var: Var<'_>) -> PathBuf {
    let usual = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
    let users = var("XDG_DATA_HOME").or_else(|| var("LOCALAPPDATA")).map(PathBuf::from);
    let users = || users.or_else(|| Some(home(var)?.join(usual))).map(|folder| folder.join("darkroom"));
    let data = var("DARKROOM_DATA").map(PathBuf::from).or_else(users);
    data.unwrap_or_else(|| PathBuf::from("darkroom-data")).join("server")
}

/// What no single value shows.
fn check(config: &Config) -> Result<(), Wrong> {
    let wrong = |message: &str| Err(Wrong::Conflict(message.into()));
    let tls = &config.tls;
    match (tls.listen, &tls.cert, &tls.key, &tls.dev) {
        (None, None, None, None) | (Some(_), Some(_), Some(_), None) | (Some(_), None, None, Some(_)) => {}
        (None, ..) => return wrong("tls.cert, tls.key and tls.dev need tls.listen; hint: --tls-listen 127.0.0.1:8443"),
        (Some(_), None, None, None) => {
            return wrong(
                "tls.listen needs a certificate: tls.cert and tls.key, or tls.dev with a folder for a development CA",
            );
        }
        (Some(_), .., Some(_)) => {
            return wrong("tls.dev makes its own certificate: leave tls.cert and tls.key out, or tls.dev");
        }
        _ => return wrong("tls.cert and tls.key go together"),
    }
    if let Some(url) = &config.public_url {
        let good = url::Url::parse(url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !good {
            return wrong("public_url has to be as https://pictures.example, perhaps with a path");
        }
    }
    for origin in &config.cors_origins {
        if !matches!(origin.as_str(), "*" | "null") && !origin.contains("://") {
            return Err(Wrong::Conflict(format!(
                "cors_origins: '{origin}' is no origin; expected one as https://app.example, or *"
            )));
        }
    }
    for key in &config.api_keys {
        if key.0.len() < 8 || !key.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong(
                "api_keys: a key has to have at least 8 visible ASCII characters; hint: `darkroom keys add NAME` makes a good one",
            );
        }
    }
    if config.safety.threshold.is_some_and(|threshold| !(0.0..=1.0).contains(&threshold)) {
        return wrong("safety.threshold has to be between 0 and 1");
    }
    config.s3.problem().map_or(Ok(()), |problem| Err(Wrong::Conflict(problem)))
}

impl Config {
    /// Whether the addresses may be listened on: those beyond this machine only where keys are asked for.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn may_listen(&self, has_keys: bool) -> Result<(), Wrong> {
        let open = [Some(self.listen), self.tls.listen].into_iter().flatten().find(|at| !at.ip().is_loopback());
        match open {
            Some(at) if !has_keys => Err(Wrong::Conflict(format!(
                "{at} can be reached from other machines, and there are no keys, so anybody could use this one; \
                 hint: `darkroom keys add NAME`, or --api-key, or listen on 127.0.0.1"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let look_up = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let flags = flags.iter().map(|(name, text)| (*name, Value::String((*text).to_owned()))).collect();
        let sources = Sources { flags, environment: &look_up, file: Some(path) };
        Loaded::read(sources).map_err(|wrong| wrong.to_string().replace(folder.path().to_str().unwrap(), "DIR"))
    }

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let file = "listen = \"127.0.0.1:1\"\nkeep_alive = \"1m\"\ntrust_proxy = true\n[limits]\nbody = \"3MiB\"\n";
        let environment = [("DARKROOM_LISTEN", "127.0.0.1:2"), ("DARKROOM_KEEP_ALIVE", "never"), ("HOME", "/h")];
        let loaded = read(file, &environment, &[("listen", "[::1]:3")]).unwrap();
        let config = &loaded.config;
        assert_eq!(config.listen, "[::1]:3".parse().unwrap());
        assert_eq!((config.keep_alive, config.limits.body), (Duration::MAX, Size(3 << 20)));
        assert!(config.trust_proxy);
        assert_eq!(config.data_dir, Path::new("/h/.local/share/darkroom/server"));
        assert_eq!(loaded.origins["listen"], Origin::Flag);
        assert_eq!(loaded.origins["keep_alive"], Origin::Environment("DARKROOM_KEEP_ALIVE".into()));
        assert_eq!(loaded.origins.len(), 4);
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let file = "public_url = \"https://x.example/d\"\nallowed_networks = [\"10.0.0.0/8\"]\nmodels = [\"krea\"]\n\
            [aliases]\n\"gpt-image-1\" = \"krea\"\n[tls]\nlisten = \"127.0.0.1:8443\"\ndev = \"ca\"\n\
            [safety]\nthreshold = 0.5\n[log]\nformat = \"json\"\n";
        let shown = read(file, &[], &[]).unwrap().show(false);
        let again = read(&shown, &[], &[]).unwrap();
        assert_eq!(again.show(false), shown);
        assert!(shown.contains("gpt-image-1") && shown.contains("keep_alive = \"30m\""), "{shown}");
        let with = read(file, &[("DARKROOM_DRAIN", "5")], &[("api_keys", "secret-key-1")]).unwrap().show(true);
        assert!(with.contains("# DARKROOM_DRAIN") && with.contains("# default") && with.contains("# flag"), "{with}");
        assert!(!with.contains("secret-key-1"), "{with}");
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];

    #[test]
    fn mistakes_are_named() {
        for (file, environment, said) in [
            ("lisen = \"127.0.0.1:1\"", &[][..], "'lisen' is no setting; hint: perhaps 'listen'"),
            ("[tls]\nlisten = \"127.0.0.1:1\"\ncipher = 1", &[], "'tls.cipher' is no setting"),
            ("[nothing]\na = 1", &[], "'nothing' is no setting"),
            ("listen = \"here\"", &[], "listen (DIR/config.toml): 'here' is no address"),
            ("listen = 8000", &[], "expected an address and a port"),
            ("precision = \"int4\"", &[], "precision (DIR/config.toml): 'int4' is none of auto, f32, bf16, int8"),
            ("", &[("DARKROOM_QUEUE_TOTAL", "many")], "queue.total (DARKROOM_QUEUE_TOTAL): 'many'"),
            ("= 1", &[], "DIR/config.toml: "),
            ("[tls]\nlisten = \"127.0.0.1:1\"", &[], "needs a certificate"),
            ("[tls]\ncert = \"a\"\nkey = \"b\"", &[], "need tls.listen"),
            ("public_url = \"pictures.example\"", &[], "public_url has to be"),
            ("cors_origins = [\"app.example\"]", &[], "is no origin"),
            ("api_keys = [\"short\"]", &[], "at least 8"),
            ("[limits]\nbody = \"-1MB\"", &[], "no size"),
            ("keep_alive = \"soon\"", &[], "no time"),
            ("allowed_networks = [\"10.0.0.0\"]", &[], "no network"),
            ("[s3]\nbucket = \"b\"", &[], "s3.access_key_id"),
            ("[s3]\nbucket = \"a b\"", &KEYS, "'a b' is no bucket's name"),
            ("[s3]\nbucket = \"pics\"\nprefix = \"my pictures\"", &KEYS, "s3.prefix: expected"),
            ("[s3]\nbucket = \"pics\"\nprefix = \"a//b\"", &KEYS, "s3.prefix: expected"),
            ("[s3]\nbucket = \"pics\"\nregion = \"eu/central\"", &KEYS, "is no region"),
            ("[s3]\nbucket = \"pics\"\nendpoint = \"s3.example\"", &KEYS, "expected one as https://s3.example"),
            ("[s3]\nbucket = \"pics\"\nendpoint = \"https://a:b@s3.example\"", &KEYS, "s3.endpoint: no address"),
            ("[s3]\nbucket = \"pics\"\nsession_token = \"a\\u0007\"", &KEYS, "s3.session_token: has to be visible"),
            ("[s3]\nbucket = \"pics\"\nsecret_access_key = \"\"", &KEYS, "s3.secret_access_key: has to be visible"),
        ] {
            let told = read(file, environment, &[]).map(|loaded| loaded.config).unwrap_err();
            assert!(told.contains(said), "{file}: {told}");
        }
        let missing = Sources { flags: vec![], environment: &|_| None, file: Some("/no/such.toml".into()) };
        assert!(Loaded::read(missing).is_err(), "a file that was asked for has to be there");
    }

    #[test]
    fn other_machines_only_with_keys() {
        let mut config = Config::in_folder("d");
        for (at, alone) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.168.0.1:1", false),
        ] {
            config.listen = at.parse().unwrap();
            assert_eq!(config.may_listen(false).is_ok(), alone, "{at}");
            assert!(config.may_listen(true).is_ok());
        }
    }
}
