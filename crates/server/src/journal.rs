//! What has to outlive the process, in one SQLite file: jobs, notices for webhooks, secrets.
//!
//! One thread writes; whatever came while it was writing shares the next transaction, and with it the wait for the disk. A write
//! is done when its transaction is on the disk (`synchronous=FULL` in WAL mode: an `fsync` for each transaction; `NORMAL` would
//! survive a killed process but not a power cut). Readers have connections of their own and never wait for the writer.
//!
//! A full disk or a folder that became read-only fails the write with [`Fault::Unavailable`] and nothing else; writes that must
//! not be lost (a job's end) are tried again until they succeed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use crate::error::Fault;

/// The database's name in the data folder.
pub const FILE: &str = "darkroom.sqlite";

/// Held while a server uses the folder.
const LOCK: &str = "darkroom.lock";

/// Given back to the disk when it is full, so that running jobs can be ended properly.
const RESERVE: &str = "darkroom.reserve";
const RESERVE_BYTES: usize = 1 << 20;

/// What each version of the tables adds to the one before.
const SCHEMA: [&str; 1] = [include_str!("schema_1.sql")];

/// Most writes that share a transaction.
const MOST_AT_ONCE: usize = 256;

/// How often a write that must not be lost is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Why a journal cannot be opened; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or a file in it.
    #[error("{}: {source}; hint: the data folder has to be writable", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{}: another darkroom serves from this data folder; hint: give each its own with --data-dir", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Not a database, or a damaged one.
    #[error("{}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Written by a newer darkroom.
    #[error("{}: written by a newer darkroom (tables of version {version}); hint: use that one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Of its tables.
        version: usize,
    },
}

/// The handle; clones share the file.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    writes: Mutex<mpsc::Sender<Write>>,
    readers: Mutex<Vec<Connection>>,
    failing: Arc<AtomicBool>,
    /// Dropped last: until then nobody else opens the folder.
    _lock: File,
}

type Work = Box<dyn FnMut(&Connection) -> rusqlite::Result<()> + Send>;
type Done = Box<dyn FnOnce(Result<(), Fault>) + Send>;

/// Something to be written.
struct Write {
    /// May run more than once: if the transaction that it shares fails, it is tried alone.
    work: Work,
    done: Done,
    /// Whether it is tried again until it succeeds.
    keep: bool,
}

impl Journal {
    /// Opens or makes the journal in a folder, which is made as well if it is not there.
    ///
    /// # Errors
    /// [`OpenError`], a sentence for the operator.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Folder { path, source }
        };
        make_private(folder).map_err(at(folder))?;
        let lock_path = folder.join(LOCK);
        let lock = File::options().write(true).create(true).truncate(false).open(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse { path: folder.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(at(&lock_path)(source)),
        }
        let path = folder.join(FILE);
        let in_database = |source| OpenError::Database { path: path.clone(), source };
        let connection = Connection::open(&path).map_err(in_database)?;
        set_up(&connection).map_err(in_database)?;
        let version = upgrade(&connection).map_err(in_database)?;
        if version > SCHEMA.len() {
            return Err(OpenError::Newer { path, version });
        }
        let failing = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let writer = Writer { connection, failing: failing.clone(), reserve: folder.join(RESERVE) };
        thread::Builder::new().name("journal".into()).spawn(move || writer.run(&receiver)).map_err(at(folder))?;
        let (writes, readers) = (Mutex::new(sender), Mutex::default());
        Ok(Self(Arc::new(Shared { path, writes, readers, failing, _lock: lock })))
    }

    /// Writes, and waits until it is on the disk. `work` may run twice, so it starts from nothing each time.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the disk does not take it, [`Fault::Failed`] if the database does not.
    pub async fn write<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (sender, receiver) = oneshot::channel();
        let result = Arc::new(Mutex::new(None));
        let kept = result.clone();
        let work = move |connection: &Connection| {
            let value = work(connection)?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            Ok(())
        };
        self.write_then(work, move |done| {
            let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
            let _ = sender.send(done.and_then(|()| value.ok_or_else(closed)));
        });
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// As [`Journal::write`], for those who do not wait: `done` is called on the writer's thread and has to be quick.
    pub fn write_then(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<()> + Send + 'static,
        done: impl FnOnce(Result<(), Fault>) + Send + 'static,
    ) {
        self.send(Write { work: Box::new(work), done: Box::new(done), keep: false });
    }

    /// Writes what must not be lost: if the disk does not take it now, it is tried again for as long as the process lives, and
    /// `done` hears of it when it is there.
    pub fn write_surely(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<()> + Send + 'static,
        done: impl FnOnce(Result<(), Fault>) + Send + 'static,
    ) {
        self.send(Write { work: Box::new(work), done: Box::new(done), keep: true });
    }

    fn send(&self, write: Write) {
        let sender = self.0.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::SendError(write)) = sender.send(write) {
            // Whoever sends may hold a lock that the answer wants.
            drop(thread::spawn(move || write.tell(Err(closed()))));
        }
    }

    /// Reads, on a thread for such things.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] or [`Fault::Failed`], as for writing.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let shared = self.0.clone();
        let read = tokio::task::spawn_blocking(move || shared.read(work)).await;
        read.unwrap_or_else(|_| Err(closed()))
    }

    /// As [`Journal::read`], on this thread: for the time before there are any requests.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn read_here<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Fault> {
        self.0.read(work)
    }

    /// A value that the server keeps for itself: a signing key, a secret.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub async fn meta(&self, name: &'static str) -> Result<Option<String>, Fault> {
        self.read(move |connection| {
            connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
        })
        .await
    }

    /// Keeps `value` under `name` unless there is one already; gives the one that is kept.
    ///
    /// # Errors
    /// As [`Journal::write`].
    pub async fn meta_or(&self, name: &'static str, value: String) -> Result<String, Fault> {
        self.write(move |connection| {
            connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES (?1, ?2)", [name, value.as_str()])?;
            connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
        })
        .await
    }

    /// Whether the last write failed: the disk is full, the folder read-only.
    pub fn is_failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed)
    }

    /// Whether it can be written now. If the last write failed it is tried: where nobody sends work to a server that is not ready, no
    /// other write would tell that there is room again.
    pub async fn is_writable(&self) -> bool {
        let probe = |connection: &Connection| {
            let beat = "INSERT INTO meta (name, value) VALUES ('probe', '') ON CONFLICT (name) DO UPDATE SET value = value || ''";
            connection.execute(beat, []).map(drop)
        };
        !self.is_failing() || self.write(probe).await.is_ok()
    }

    /// Waits until all that was sent before is on the disk or has failed.
    pub async fn flush(&self) {
        let _ = self.write(|_| Ok(())).await;
    }
}

impl Shared {
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Fault> {
        /// Connections kept for the next reader.
        const KEPT: usize = 4;
        let readers = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            Ok(connection)
        };
        let kept = readers().pop();
        let connection = kept.map_or_else(open, Ok).map_err(|error| fault(&error))?;
        let result = work(&connection).map_err(|error| fault(&error));
        let mut readers = readers();
        if readers.len() < KEPT {
            readers.push(connection);
        }
        result
    }
}

impl Write {
    fn tell(self, result: Result<(), Fault>) {
        (self.done)(result);
    }
}

/// The thread that writes.
struct Writer {
    connection: Connection,
    failing: Arc<AtomicBool>,
    reserve: PathBuf,
}

impl Writer {
    fn run(self, receiver: &mpsc::Receiver<Write>) {
        let mut kept: Vec<Write> = Vec::new();
        self.keep_reserve();
        loop {
            let first = if kept.is_empty() {
                receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            } else {
                receiver.recv_timeout(AGAIN)
            };
            let last = matches!(first, Err(mpsc::RecvTimeoutError::Disconnected));
            let mut batch: Vec<Write> = kept.drain(..).chain(first).collect();
            batch.extend(receiver.try_iter().take(MOST_AT_ONCE));
            let mut results = self.commit(&mut batch);
            if results.iter().any(is_full) && fs::remove_file(&self.reserve).is_ok() {
                results = self.commit_failed(&mut batch, results);
            }
            let trouble = results.iter().find_map(|result| result.as_ref().err().filter(|error| is_passing(error)));
            match (self.failing.swap(trouble.is_some(), Ordering::Relaxed), trouble) {
                (false, Some(error)) => tracing::error!(%error, "the journal cannot be written"),
                (true, None) => {
                    tracing::info!("the journal can be written again");
                    self.keep_reserve();
                }
                _ => {}
            }
            for (write, result) in batch.into_iter().zip(results) {
                if write.keep && result.as_ref().is_err_and(is_passing) {
                    kept.push(write);
                } else {
                    write.tell(result.map_err(|error| fault(&error)));
                }
            }
            if last {
                break;
            }
        }
    }

    /// All in one transaction; if that fails, each alone, so that one cannot spoil the others.
    fn commit(&self, batch: &mut [Write]) -> Vec<rusqlite::Result<()>> {
        if batch.len() > 1 && self.transact(batch).is_ok() {
            return batch.iter().map(|_| Ok(())).collect();
        }
        batch.iter_mut().map(|write| self.transact(std::slice::from_mut(write))).collect()
    }

    /// Once more those that found no room.
    fn commit_failed(&self, batch: &mut [Write], before: Vec<rusqlite::Result<()>>) -> Vec<rusqlite::Result<()>> {
        let again = |(write, result): (&mut Write, rusqlite::Result<()>)| {
            // Only ends may use the reserve: new jobs would eat it up.
            if write.keep && is_full(&result) { self.transact(std::slice::from_mut(write)) } else { result }
        };
        batch.iter_mut().zip(before).map(again).collect()
    }

    fn transact(&self, batch: &mut [Write]) -> rusqlite::Result<()> {
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        for write in batch {
            (write.work)(&transaction)?;
        }
        transaction.commit()
    }

    /// Takes a little room from the disk while there is some; that it cannot is no reason to stop.
    fn keep_reserve(&self) {
        let whole = fs::metadata(&self.reserve).is_ok_and(|found| found.len() == RESERVE_BYTES as u64);
        if !whole && let Err(error) = fs::write(&self.reserve, vec![0x55; RESERVE_BYTES]) {
            let _ = fs::remove_file(&self.reserve);
            tracing::debug!(%error, "no room for a reserve");
        }
    }
}

/// A folder for its owner alone.
fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)
}

/// Brings the tables up to date; gives their version, which may be one that is not known here.
fn upgrade(connection: &Connection) -> rusqlite::Result<usize> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let found = found as usize;
    if found >= SCHEMA.len() {
        return Ok(found);
    }
    for script in &SCHEMA[found..] {
        transaction.execute_batch(script)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA.len() as u32)?;
    transaction.commit()?;
    Ok(SCHEMA.len())
}

fn is_full(result: &rusqlite::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DiskFull))
}

/// Whether it may succeed later: the disk's doing, not ours.
fn is_passing(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
        )
    )
}

/// What the caller hears; the operator's log has SQLite's words.
fn fault(error: &rusqlite::Error) -> Fault {
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        Fault::Unavailable("the server's disk is full: nothing new can be taken until there is room".into())
    } else if is_passing(error) {
        Fault::Unavailable("the server's data folder cannot be written: nothing new can be taken".into())
    } else {
        tracing::error!(%error, "the journal does not do what was asked");
        Fault::Failed("the server's journal failed".into())
    }
}

fn closed() -> Fault {
    Fault::Unavailable("the server is shutting down".into())
}
