//! `darkroom serve` and `darkroom dev-ca`: flags to a configuration; the work is in `server`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use flux::{Device, LoadOptions};
use server::{
    config::{Config, Loaded, Sources, Value, Wrong},
    logging, start,
    stock::Surroundings,
    tls,
};

use crate::{Usage, model_args::search_paths};

/// Flags go before the environment (`DARKROOM_LISTEN` …), that goes before the file. SIGHUP reads them again.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Where to listen for plain HTTP; beyond this machine only with keys [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// A model to serve: as for `generate -m`; repeat it for several. Without it the model in the box, under the vendors' names
    #[arg(short, long = "model", value_name = "PATH|NAME")]
    models: Vec<String>,
    /// A key that clients have to send; repeat it for several. `darkroom keys add` makes keys with limits
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// Where to listen for HTTPS
    #[arg(long, value_name = "ADDRESS")]
    tls_listen: Option<String>,
    /// The certificate and its chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<String>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<String>,
    /// A folder with a development CA of this machine's own, made if it is not there
    #[arg(long, value_name = "FOLDER", conflicts_with = "tls_cert")]
    tls_dev: Option<String>,
    /// What clients call this server, such as https://pictures.example: begins every URL in answers
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// The folder of the journal, the pictures and the keys
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// A folder with LoRAs that requests may name
    #[arg(long, value_name = "FOLDER")]
    loras: Option<String>,
    /// Arithmetic of products: auto, f32, bf16, int8
    #[arg(long, value_name = "KIND")]
    precision: Option<String>,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// The most memory that models may take, such as 12GB
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// How long a model stays loaded after its last use, such as 30m; never: for good
    #[arg(long, value_name = "TIME")]
    keep_alive: Option<String>,
    /// A name that clients may call this server by, beside localhost and addresses; repeat it for several
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// An origin whose pages may ask, such as https://app.example; repeat it for several
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Webhooks may go to private addresses: for tests, and for receivers in one's own network
    #[arg(long)]
    allow_private_webhooks: bool,
    /// Pictures may be fetched from private addresses
    #[arg(long)]
    allow_private_fetches: bool,
    /// Any other setting by its name in the file, such as limits.body=32MiB; `darkroom config show` lists them
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// The configuration file [default: $DARKROOM_CONFIG, or darkroom/config.toml in the user's folder]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Args {
    /// What the flags say, by the settings' names.
    fn flags(&self) -> Result<Vec<(&'static str, Value)>> {
        let list = |values: &[String]| {
            (!values.is_empty()).then(|| Value::Array(values.iter().cloned().map(Value::String).collect()))
        };
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let flag = |value: bool| value.then_some(Value::Boolean(true));
        let given = [
            ("listen", text(&self.listen)),
            ("models", list(&self.models)),
            ("api_keys", list(&self.api_key)),
            ("tls.listen", text(&self.tls_listen)),
            ("tls.cert", text(&self.tls_cert)),
            ("tls.key", text(&self.tls_key)),
            ("tls.dev", text(&self.tls_dev)),
            ("public_url", text(&self.public_url)),
            ("data_dir", text(&self.data_dir)),
            ("loras", text(&self.loras)),
            ("precision", text(&self.precision)),
            ("threads", text(&self.threads)),
            ("memory_limit", text(&self.memory_limit)),
            ("keep_alive", text(&self.keep_alive)),
            ("allowed_hosts", list(&self.allow_host)),
            ("cors_origins", list(&self.cors_origin)),
            ("allow_private_webhooks", flag(self.allow_private_webhooks)),
            ("allow_private_fetches", flag(self.allow_private_fetches)),
        ];
        let mut flags: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        for setting in &self.set {
            let (name, value) =
                setting.split_once('=').ok_or_else(|| Usage(format!("--set: expected NAME=VALUE, got '{setting}'")))?;
            let known = server::config::SETTINGS.iter().find(|known| known.name == name.trim());
            let known = known.ok_or_else(|| {
                Usage(format!("--set: there is no setting '{}'; `darkroom config show` lists them", name.trim()))
            })?;
            flags.push((known.name, Value::String(value.trim().to_owned())));
        }
        Ok(flags)
    }
}

/// What all sources say now.
fn read(flags: Vec<(&'static str, Value)>, file: Option<PathBuf>) -> Result<Config, Wrong> {
    let environment = |name: &str| std::env::var(name).ok();
    Loaded::read(Sources { flags, environment: &environment, file }).map(|loaded| loaded.config)
}

/// Serves until it is asked to end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (flags, file) = (args.flags()?, args.config.clone());
    let config = read(flags.clone(), file.clone()).map_err(|wrong| Usage(wrong.to_string()))?;
    logging::start(&config.log)?;
    let surroundings = Surroundings { search: search_paths(), options: options(&config) };
    let again = Box::new(move || read(flags.clone(), file.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime
        .block_on(start::serve(config, again, surroundings, |urls| {
            for url in urls {
                eprintln!("listening on {url}");
            }
        }))
        .map_err(|error| match error {
            start::StartError::Config(wrong) => Usage(wrong.to_string()).into(),
            start::StartError::Model(error) => error.into(),
            // Its sentence has the cause in it.
            other => anyhow::Error::msg(other.to_string()),
        })
}

fn options(config: &Config) -> LoadOptions {
    LoadOptions {
        device: Device::Cpu { threads: config.threads.map(usize::from) },
        precision: config.precision.0,
        ..LoadOptions::default()
    }
}

/// Where the development CA goes.
#[derive(ClapArgs)]
pub(crate) struct DevCa {
    /// The folder; what is there already is kept
    folder: PathBuf,
    /// Another name or address that the certificate is for
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
}

/// Makes a development CA and says how clients come to trust it.
pub(crate) fn dev_ca(args: &DevCa) -> Result<()> {
    let made = tls::dev_ca(&args.folder, &args.name).context("no development CA")?;
    println!("{}", tls::recipes(&made));
    Ok(())
}
