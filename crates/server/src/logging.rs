//! The log: lines or JSON on standard error. Above `trace` there is no prompt in it, no path of a user, no key, no URL that works as one.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

use crate::config::{Log, LogFormat};

/// What libraries say of every connection is rarely of use; the operator's own filter goes after this.
const QUIET: &str = "hyper=info,hyper_util=info,h2=info,reqwest=info,rustls=warn,object_store=warn";

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter.
    #[error("log.filter: {0}; expected a level, or levels by module: info,server=debug")]
    Filter(#[from] ParseError),
    /// Somebody logs already.
    #[error("the log was started twice")]
    Twice,
}

/// Starts the log of this process.
///
/// # Errors
/// [`LogError`], for the operator.
pub fn start(log: &Log) -> Result<(), LogError> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{}", log.filter))?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| LogError::Twice)
}
