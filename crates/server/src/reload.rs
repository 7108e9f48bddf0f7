//! Another configuration without a restart: on SIGHUP, or when an administrator asks for it.
//!
//! All sources are read again. What is live ([`crate::config::Setting::is_live`]) is in force from the next job on; what is not is
//! named, and waits for a restart. A configuration that is wrong changes nothing.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::{
    config::{Config, Setting, Wrong},
    shelf::Shelf,
    stock::{Stock, Surroundings},
};

/// Reads all sources of the configuration once more.
pub type Again = Box<dyn Fn() -> Result<Config, Wrong> + Send + Sync>;

/// How the configuration is read again.
pub struct Reload {
    again: Again,
    surroundings: Surroundings,
    /// As the server started.
    started: Config,
    /// As it is now, as far as it is live.
    current: Mutex<Config>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The models that are served now.
    pub models: Vec<String>,
    /// Settings that changed and are in force.
    pub changed: Vec<&'static str>,
    /// Settings that changed and wait for a restart.
    pub needs_restart: Vec<&'static str>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] Wrong),
    /// A model that is to be served, or the policy.
    #[error(transparent)]
    Stock(#[from] flux::Error),
}

impl Reload {
    /// For a server that started with `config`.
    pub fn new(again: Again, surroundings: Surroundings, config: Config) -> Self {
        Self { again, surroundings, current: Mutex::new(config.clone()), started: config }
    }

    /// Reads everything again and puts what is live on the shelf. Reads files: not for a thread that serves.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing was changed then.
    pub fn apply(&self, shelf: &Shelf) -> Result<Reloaded, ReloadError> {
        // Of two at once the one that reads last is in force.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let new = (self.again)()?;
        let stock = Stock::configured(&new, &self.surroundings)?;
        let names =
            |settings: &mut dyn Iterator<Item = &'static Setting>| settings.map(|setting| setting.name).collect();
        let done = Reloaded {
            models: stock.models.iter().map(|model| model.name.clone()).collect(),
            changed: names(&mut new.differences(&current).filter(|setting| setting.is_live())),
            needs_restart: names(&mut new.differences(&self.started).filter(|setting| !setting.is_live())),
        };
        shelf.replace(stock);
        *current = new;
        tracing::info!(models = ?done.models, changed = ?done.changed, needs_restart = ?done.needs_restart, "configuration read again");
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    #[test]
    fn what_is_live_changes_and_the_rest_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_folder(folder.path());
        let next = Arc::new(Mutex::new(Ok(config.clone())));
        let read = next.clone();
        let again = move || {
            let next = read.lock().unwrap();
            next.as_ref().cloned().map_err(|message: &String| Wrong::Conflict(message.clone()))
        };
        let surroundings = Surroundings::default();
        let shelf = Shelf::new(Stock::configured(&config, &surroundings).unwrap());
        let reload = Reload::new(Box::new(again), surroundings, config.clone());

        let same = reload.apply(&shelf).unwrap();
        assert_eq!((same.models, same.changed, same.needs_restart), (vec!["pocket".to_owned()], vec![], vec![]));

        let mut changed = config.clone();
        changed.aliases.insert("small".into(), "pocket".into());
        changed.keep_alive = Duration::from_secs(7);
        changed.safety.pictures = false;
        changed.listen = "127.0.0.1:1".parse().unwrap();
        *next.lock().unwrap() = Ok(changed.clone());
        let done = reload.apply(&shelf).unwrap();
        assert_eq!(done.changed, ["aliases", "keep_alive", "safety.pictures"]);
        assert_eq!(done.needs_restart, ["listen"]);
        let stock = shelf.stock();
        assert_eq!(stock.resolve(Some("small")).as_deref(), Some("pocket"));
        assert_eq!((stock.keep_alive, stock.safety().name()), (Some(Duration::from_secs(7)), "words"));

        // What waits for a restart is named until there was one.
        let done = reload.apply(&shelf).unwrap();
        assert_eq!((done.changed, done.needs_restart), (vec![], vec!["listen"]));

        let stock = shelf.stock();
        for wrong in [
            Err("no".to_owned()),
            Ok(Config { models: vec!["/nothing/here".into()], ..changed.clone() }),
            Ok(Config {
                safety: crate::config::Safety { words: Some("/nothing/here".into()), ..changed.safety.clone() },
                ..changed
            }),
        ] {
            *next.lock().unwrap() = wrong;
            assert!(reload.apply(&shelf).is_err());
            assert!(Arc::ptr_eq(&shelf.stock(), &stock), "nothing was changed");
        }
    }
}
