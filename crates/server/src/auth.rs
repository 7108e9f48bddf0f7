//! Who asks: API keys, what each may do and how much of it.
//!
//! Keys are kept as SHA-256 of themselves: those that `darkroom keys` makes have 200 random bits, which no slower hash would
//! make safer. They are compared in constant time, whatever scheme they come under. Without any key the server is open, and the
//! header is not even looked at: clients that insist on a key send anything.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, Mac};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{
    clock::{Millis, after, now},
    config::Secret,
    error::Fault,
    hex::hex,
    mac,
    owner::Owner,
};

/// What a key is good for; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// To look: models, metrics, jobs of its owner.
    Read,
    /// To make pictures.
    Generate,
    /// To load and unload models, to see everybody's numbers.
    Admin,
}

impl Scope {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Generate => "generate",
            Self::Admin => "admin",
        }
    }
}

/// How much a key may do; nothing: as much as the server can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests that make something, in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// Such requests at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// Jobs that have not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<u32>,
}

/// Who asks: an extension of every request that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose jobs these are.
    pub owner: Owner,
    /// What the key is good for.
    pub scope: Scope,
    /// How much.
    pub limits: Limits,
    /// The key's name; none on an open server.
    pub key: Option<Arc<str>>,
}

impl Caller {
    /// Anybody, on a server without keys.
    pub fn anyone() -> Self {
        Self { owner: Owner::anyone(), scope: Scope::Admin, limits: Limits::default(), key: None }
    }

    /// # Errors
    /// [`Fault::Forbidden`] if the key is not good for it.
    pub fn may(&self, scope: Scope) -> Result<(), Fault> {
        let said = || format!("this key has the scope '{}'; this needs '{}'", self.scope.name(), scope.name());
        if self.scope >= scope { Ok(()) } else { Err(Fault::Forbidden(said())) }
    }
}

/// What a token is good for that stands in for a key for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Uploads.
    Upload,
    /// Streams and web sockets, in a URL.
    Realtime,
}

/// The keys that are known. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Shared>);

struct Shared {
    /// From flags and the environment.
    given: Vec<Known>,
    /// From the journal, with those that were revoked.
    stored: RwLock<Vec<Known>>,
    folder: Option<PathBuf>,
    /// Signs tokens.
    seal: [u8; 32],
    use_of_keys: Mutex<HashMap<Arc<str>, Arc<KeyUse>>>,
}

struct Known {
    hash: [u8; 32],
    revoked: bool,
    caller: Caller,
}

struct KeyUse {
    running: AtomicU32,
    /// Requests that are left of this minute's, and when that was true.
    left: Mutex<(f64, Instant)>,
}

/// How often the journal's keys are read again, so that `darkroom keys revoke` needs no restart.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// What begins a token that this server signed.
const TOKEN: &str = "drt_";

impl Auth {
    /// `seal` signs tokens: keep it, and they outlive a restart. `folder`: the journal's, for the keys in it.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the keys cannot be read.
    pub fn new(given: &[Secret], folder: Option<&Path>, seal: [u8; 32]) -> Result<Self, Fault> {
        let given = given.iter().map(|Secret(key)| {
            let hash = hash(key);
            // Of the key and not of its place in a list: jobs in the journal keep their owner.
            let name: Arc<str> = format!("given-{}", hex(&hash[..4])).into();
            let caller =
                Caller { owner: Owner(name.clone()), scope: Scope::Admin, limits: Limits::default(), key: Some(name) };
            Known { hash, revoked: false, caller }
        });
        let shared = Shared {
            given: given.collect(),
            stored: RwLock::default(),
            folder: folder.map(Path::to_owned),
            seal,
            use_of_keys: Mutex::default(),
        };
        let auth = Self(Arc::new(shared));
        auth.read_again()?;
        Ok(auth)
    }

    /// Reads the journal's keys.
    ///
    /// # Errors
    /// [`Fault::Unavailable`]; what was known before stays in force.
    pub fn read_again(&self) -> Result<(), Fault> {
        let Some(folder) = &self.0.folder else { return Ok(()) };
        let Some(keys) = KeyTable::open(folder)? else { return Ok(()) };
        let stored = keys.list()?.into_iter().filter_map(StoredKey::known).collect();
        *self.0.stored.write().unwrap_or_else(PoisonError::into_inner) = stored;
        Ok(())
    }

    /// Reads them again and again, for a task of its own.
    pub async fn keep_reading(self) {
        loop {
            tokio::time::sleep(READ_AGAIN).await;
            let this = self.clone();
            if let Ok(Err(fault)) = tokio::task::spawn_blocking(move || this.read_again()).await {
                tracing::warn!(%fault, "the keys could not be read again");
            }
        }
    }

    /// Whether keys are asked for. One that was revoked still closes the server: taking the last key away opens nothing.
    pub fn has_keys(&self) -> bool {
        !self.0.given.is_empty() || !self.0.stored.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Who asks, by the `Authorization` header.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`].
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, Fault> {
        if !self.has_keys() {
            return Ok(Caller::anyone());
        }
        let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Err(Fault::Unauthenticated) };
        presented(value).iter().find_map(|key| self.find(key)).ok_or(Fault::Unauthenticated)
    }

    /// Who asks, by a token of ours in that header: on the routes for which there are such tokens.
    pub fn caller_by_token(&self, headers: &HeaderMap, good_for: Use) -> Option<Caller> {
        let value = headers.get(header::AUTHORIZATION)?;
        presented(value).iter().find_map(|token| self.redeem(token, good_for))
    }

    fn find(&self, key: &str) -> Option<Caller> {
        let hash = hash(key);
        let stored = self.0.stored.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        // All of them are compared, whichever it is.
        for known in self.0.given.iter().chain(stored.iter()) {
            let same: Choice = known.hash.ct_eq(&hash);
            if bool::from(same) && !known.revoked {
                found = Some(&known.caller);
            }
        }
        found.cloned()
    }

    /// A token that stands in for the caller's key for a while.
    pub fn mint(&self, caller: &Caller, good_for: Use, lasts: Duration) -> String {
        let until = after(lasts);
        let said = Token {
            owner: caller.owner.clone(),
            scope: caller.scope.min(Scope::Generate),
            limits: caller.limits,
            key: caller.key.clone(),
            good_for,
            until,
        };
        // A struct of texts and numbers always becomes JSON.
        let said = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&said).unwrap_or_default());
        let seal = BASE64_URL_SAFE_NO_PAD.encode(self.sealed(&said).finalize().into_bytes());
        format!("{TOKEN}{said}.{seal}")
    }

    /// Whose token it is, if it is one of ours, for this use, not over, and its key is still in force: see [`Auth::still`].
    pub fn redeem(&self, token: &str, good_for: Use) -> Option<Caller> {
        let (said, seal) = token.strip_prefix(TOKEN)?.split_once('.')?;
        let seal = BASE64_URL_SAFE_NO_PAD.decode(seal).ok()?;
        self.sealed(said).verify_slice(&seal).ok()?;
        let said: Token = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(said).ok()?).ok()?;
        let good = said.good_for == good_for && said.until > now();
        let said = Caller { owner: said.owner, scope: said.scope, limits: said.limits, key: said.key };
        self.still(&said).filter(|_| good)
    }

    /// Who asked a while ago, as its key is now; `None` if that was revoked, or if there are keys and it had none.
    pub fn still(&self, caller: &Caller) -> Option<Caller> {
        let Some(name) = &caller.key else { return (!self.has_keys()).then(|| caller.clone()) };
        let stored = self.0.stored.read().unwrap_or_else(PoisonError::into_inner);
        let known = self.0.given.iter().chain(stored.iter()).filter(|known| !known.revoked);
        let now = known.map(|known| &known.caller).find(|now| now.key.as_ref() == Some(name))?;
        let same = now.owner == caller.owner;
        same.then(|| Caller { scope: caller.scope.min(now.scope), ..now.clone() })
    }

    fn sealed(&self, said: &str) -> Hmac<Sha256> {
        let mut mac = mac::keyed(&self.0.seal);
        mac.update(said.as_bytes());
        mac
    }

    /// Counts a request that makes something against its key's limits, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Fault::Full`] when it is too much.
    pub fn admit(&self, caller: &Caller) -> Result<Admitted, Fault> {
        let (Some(key), limits) = (&caller.key, caller.limits) else { return Ok(Admitted(None)) };
        if limits.per_minute.is_none() && limits.concurrent.is_none() {
            return Ok(Admitted(None));
        }
        let used = {
            let mut all = self.0.use_of_keys.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || {
                let left = Mutex::new((f64::from(limits.per_minute.unwrap_or(0)), Instant::now()));
                Arc::new(KeyUse { running: AtomicU32::new(0), left })
            };
            all.entry(key.clone()).or_insert_with(fresh).clone()
        };
        used.running.fetch_add(1, Ordering::AcqRel);
        let admitted = Admitted(Some(used.clone()));
        if limits.concurrent.is_some_and(|most| used.running.load(Ordering::Acquire) > most) {
            let message = "this key has as many requests running as it may".into();
            return Err(Fault::Full { retry_after: 1, message });
        }
        if let Some(most) = limits.per_minute {
            let mut left = used.left.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = take(&mut left, f64::from(most), Instant::now());
            if let Some(retry_after) = wait {
                let message = format!("this key may make {most} requests a minute");
                return Err(Fault::Full { retry_after, message });
            }
        }
        Ok(admitted)
    }
}

/// Takes one of `most` a minute; or the seconds until there is one.
fn take(left: &mut (f64, Instant), most: f64, now: Instant) -> Option<u32> {
    let since = now.saturating_duration_since(left.1).as_secs_f64();
    *left = ((left.0 + since * most / 60.0).min(most), now);
    if left.0 >= 1.0 {
        left.0 -= 1.0;
        return None;
    }
    Some(((1.0 - left.0) * 60.0 / most.max(0.01)).ceil() as u32)
}

/// A request that counts against its key for as long as this lives.
pub struct Admitted(Option<Arc<KeyUse>>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(used) = &self.0 {
            used.running.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Token {
    owner: Owner,
    scope: Scope,
    limits: Limits,
    key: Option<Arc<str>>,
    good_for: Use,
    until: Millis,
}

/// What a header may mean as a key, under any scheme or none.
fn presented(value: &HeaderValue) -> Vec<String> {
    let Ok(value) = value.to_str() else { return Vec::new() };
    let value = value.trim();
    let Some((scheme, key)) = value.split_once(' ') else { return vec![value.to_owned()] };
    let key = key.trim();
    if !scheme.eq_ignore_ascii_case("basic") {
        return vec![key.to_owned()];
    }
    let decoded = BASE64_STANDARD.decode(key).or_else(|_| BASE64_STANDARD_NO_PAD.decode(key.trim_end_matches('=')));
    let Some(text) = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok()) else { return Vec::new() };
    // The whole, or the password; or the user where the password is empty.
    let password = text.split_once(':').map(|(user, password)| if password.is_empty() { user } else { password });
    let password = password.map(str::to_owned);
    [Some(text), password].into_iter().flatten().collect()
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// A key as the journal keeps it: not the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// Its name.
    pub name: String,
    /// SHA-256 of the key, hexadecimal.
    pub hash: String,
    /// Whose jobs are made with it.
    pub owner: Owner,
    /// What it is good for.
    pub scope: Scope,
    /// How much of it.
    pub limits: Limits,
    /// When it was made.
    pub made: Millis,
    /// When it was revoked.
    pub revoked: Option<Millis>,
}

impl StoredKey {
    fn known(self) -> Option<Known> {
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(self.hash.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let caller = Caller { owner: self.owner, scope: self.scope, limits: self.limits, key: Some(self.name.into()) };
        Some(Known { hash, revoked: self.revoked.is_some(), caller })
    }
}

/// The journal's table of keys, through a connection of its own: `darkroom keys` writes it while a server runs.
pub struct KeyTable(Connection);

/// What keys are made of: no lookalikes.
const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Why a key is not made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum NoKey {
    /// The name is in use.
    #[error("there is a key '{0}' already; hint: a key that was revoked keeps its name, so take another")]
    Taken(String),
    /// It cannot be a name.
    #[error("'{0}' is no name for a key; expected up to 64 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// There is none, or it is revoked.
    #[error("there is no key '{0}' in force; hint: `darkroom keys list`")]
    Unknown(String),
    /// The database.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl KeyTable {
    /// The table in a data folder; `None` where no server has run yet.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if it cannot be read.
    pub fn open(folder: &Path) -> Result<Option<Self>, Fault> {
        let path = folder.join("darkroom.sqlite");
        if !path.is_file() {
            return Ok(None);
        }
        let connection = Connection::open(path).map_err(|error| broken(&error))?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(|error| broken(&error))?;
        let known = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'keys'";
        let there = connection.query_row(known, [], |_| Ok(())).optional().map_err(|error| broken(&error))?;
        Ok(there.map(|()| Self(connection)))
    }

    /// Makes a key and gives it: it is nowhere else afterwards.
    ///
    /// # Errors
    /// [`NoKey`].
    pub fn add(&self, name: &str, owner: &str, scope: Scope, limits: Limits) -> Result<String, NoKey> {
        for text in [name, owner] {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
                return Err(NoKey::Name(text.to_owned()));
            }
        }
        let mut random = [0_u8; 40];
        getrandom::fill(&mut random).map_err(|_| Fault::Failed("the system gives no random numbers".into()))?;
        let key: String = random.iter().map(|byte| LETTERS[usize::from(byte % 32)] as char).collect();
        let key = format!("drk_{key}");
        let json = |value: serde_json::Result<String>| value.map_err(|error| Fault::Failed(error.to_string()));
        let added = self.0.execute(
            "INSERT OR IGNORE INTO keys (id, hash, owner, scopes, limits, made) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                name,
                hex(&hash(&key)),
                owner,
                json(serde_json::to_string(&[scope]))?,
                json(serde_json::to_string(&limits))?,
                now()
            ],
        );
        match added {
            Ok(0) => Err(NoKey::Taken(name.to_owned())),
            Ok(_) => Ok(key),
            Err(error) => Err(broken(&error).into()),
        }
    }

    /// All keys, oldest first, with those that were revoked.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub fn list(&self) -> Result<Vec<StoredKey>, Fault> {
        let read = || {
            let sql = "SELECT id, hash, owner, scopes, limits, made, revoked FROM keys ORDER BY made, id";
            let mut statement = self.0.prepare(sql)?;
            let rows = statement.query_map([], |row| {
                let scopes: String = row.get(3)?;
                let limits: String = row.get(4)?;
                let scopes: Vec<Scope> = serde_json::from_str(&scopes).unwrap_or_default();
                Ok(StoredKey {
                    name: row.get(0)?,
                    hash: row.get(1)?,
                    owner: Owner(row.get::<_, String>(2)?.into()),
                    scope: scopes.into_iter().max().unwrap_or(Scope::Read),
                    limits: serde_json::from_str(&limits).unwrap_or_default(),
                    made: row.get(5)?,
                    revoked: row.get(6)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| broken(&error))
    }

    /// Ends a key. A server that runs knows it within seconds.
    ///
    /// # Errors
    /// [`NoKey`].
    pub fn revoke(&self, name: &str) -> Result<(), NoKey> {
        let revoked =
            self.0.execute("UPDATE keys SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL", params![name, now()]);
        match revoked.map_err(|error| broken(&error))? {
            0 => Err(NoKey::Unknown(name.to_owned())),
            _ => Ok(()),
        }
    }
}

fn broken(error: &rusqlite::Error) -> Fault {
    Fault::Unavailable(format!("the keys in the data folder cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(auth: &Auth, value: &str) -> Result<Caller, Fault> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        auth.caller(&headers)
    }

    #[test]
    fn a_key_is_taken_under_any_scheme() {
        let auth = Auth::new(&[Secret("id:secret-key".into()), Secret("plain-key".into())], None, [1; 32]).unwrap();
        let owner = asks(&auth, "Bearer id:secret-key").unwrap().owner;
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for good in [
            "Key id:secret-key",
            "token id:secret-key",
            "id:secret-key",
            &basic("id:secret-key"),
            &basic("user:id:secret-key"),
        ] {
            assert_eq!(asks(&auth, good).map(|caller| caller.owner), Ok(owner.clone()), "{good}");
        }
        assert_ne!(asks(&auth, &basic("plain-key:")).unwrap().owner, owner, "each key is an owner of its own");
        for bad in ["Bearer", "Bearer ", "Bearer id:secret-ke", "Basic !!", "Basic ", "", &basic("id"), &basic("")] {
            assert_eq!(asks(&auth, bad), Err(Fault::Unauthenticated), "{bad}");
        }
        assert_eq!(auth.caller(&HeaderMap::new()), Err(Fault::Unauthenticated));
        let open = Auth::new(&[], None, [1; 32]).unwrap();
        assert_eq!(asks(&open, "Bearer junk"), Ok(Caller::anyone()));
    }

    #[test]
    fn keys_are_made_listed_and_revoked_while_a_server_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(KeyTable::open(folder.path()).unwrap().is_none());
        let auth = Auth::new(&[], Some(folder.path()), [1; 32]).unwrap();
        assert!(!auth.has_keys());
        Connection::open(folder.path().join("darkroom.sqlite"))
            .unwrap()
            .execute_batch(
                "CREATE TABLE keys (id TEXT PRIMARY KEY NOT NULL, hash TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
                 scopes TEXT NOT NULL, limits TEXT NOT NULL, made INTEGER NOT NULL, revoked INTEGER) STRICT;",
            )
            .unwrap();
        let table = KeyTable::open(folder.path()).unwrap().unwrap();
        let limits = Limits { per_minute: Some(2), ..Limits::default() };
        let key = table.add("laptop", "me", Scope::Generate, limits).unwrap();
        assert!(key.len() == 44 && key.starts_with("drk_"), "{key}");
        assert!(matches!(table.add("laptop", "me", Scope::Read, limits), Err(NoKey::Taken(_))));
        assert!(matches!(table.add("a/b", "me", Scope::Read, limits), Err(NoKey::Name(_))));
        let raw = std::fs::read(folder.path().join("darkroom.sqlite")).unwrap();
        assert!(!raw.windows(key.len()).any(|window| window == key.as_bytes()), "the key itself is nowhere");

        let before = auth.mint(&Caller::anyone(), Use::Upload, Duration::from_mins(1));
        assert!(auth.redeem(&before, Use::Upload).is_some(), "the server is open");
        auth.read_again().unwrap();
        assert!(auth.redeem(&before, Use::Upload).is_none(), "a token of nobody's on a server with keys");
        let caller = asks(&auth, &format!("Bearer {key}")).unwrap();
        let token = auth.mint(&caller, Use::Realtime, Duration::from_mins(1));
        assert_eq!(auth.redeem(&token, Use::Realtime).map(|caller| caller.limits), Some(limits));
        let other = Caller { owner: Owner("you".into()), ..caller.clone() };
        assert!(auth.redeem(&auth.mint(&other, Use::Realtime, Duration::from_mins(1)), Use::Realtime).is_none());
        assert_eq!((&*caller.owner.0, caller.scope, caller.limits), ("me", Scope::Generate, limits));
        assert!(caller.may(Scope::Read).is_ok() && caller.may(Scope::Admin).is_err());
        let listed = table.list().unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].revoked), (1, "laptop", None));

        table.revoke("laptop").unwrap();
        assert!(matches!(table.revoke("laptop"), Err(NoKey::Unknown(_))));
        auth.read_again().unwrap();
        assert_eq!(
            asks(&auth, &format!("Bearer {key}")),
            Err(Fault::Unauthenticated),
            "and the server is not open now"
        );
        assert!(auth.redeem(&token, Use::Realtime).is_none(), "what was made with it ends with it");
        assert!(auth.still(&caller).is_none());
    }

    #[test]
    fn a_key_does_what_it_may_and_no_more() {
        let auth = Auth::new(&[], None, [1; 32]).unwrap();
        let limits = Limits { per_minute: Some(3), concurrent: Some(2), queued: None };
        let caller = Caller { key: Some("a".into()), limits, ..Caller::anyone() };
        let first = auth.admit(&caller).unwrap();
        let _second = auth.admit(&caller).unwrap();
        assert!(matches!(auth.admit(&caller), Err(Fault::Full { retry_after: 1, .. })), "two at once");
        drop(first);
        drop(auth.admit(&caller).unwrap());
        assert!(matches!(auth.admit(&caller), Err(Fault::Full { retry_after: 20, .. })), "three in a minute");
        let start = Instant::now();
        let mut left = (0.0, start);
        assert_eq!(take(&mut left, 60.0, start + Duration::from_millis(500)), Some(1));
        assert_eq!(take(&mut left, 60.0, start + Duration::from_secs(1)), None);
    }

    #[test]
    fn a_token_is_good_for_one_thing_and_for_a_while() {
        let auth = Auth::new(&[Secret("some-secret-key".into())], None, [1; 32]).unwrap();
        let caller = asks(&auth, "Bearer some-secret-key").unwrap();
        let token = auth.mint(&caller, Use::Upload, Duration::from_mins(1));
        assert_eq!(auth.redeem(&token, Use::Upload).unwrap().owner, caller.owner);
        assert_eq!(auth.redeem(&token, Use::Upload).unwrap().scope, Scope::Generate, "never more than that");
        assert!(auth.redeem(&token, Use::Realtime).is_none());
        assert!(auth.redeem(&auth.mint(&caller, Use::Upload, Duration::ZERO), Use::Upload).is_none());
        let other = Auth::new(&[], None, [2; 32]).unwrap();
        assert!(other.redeem(&token, Use::Upload).is_none(), "signed by somebody else");
        let cut = token.replace('.', "A.");
        for wrong in ["", "drt_", "drt_.", "some-secret-key", &token[..token.len() - 1], &cut] {
            assert!(auth.redeem(wrong, Use::Upload).is_none(), "{wrong}");
        }
        assert_eq!(asks(&auth, &format!("Bearer {token}")), Err(Fault::Unauthenticated), "a token is no key");
    }
}
