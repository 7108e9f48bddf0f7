//! How much may be on its way in at the same time: bodies, messages of web sockets and uploads that are put together, all counted
//! against `limits.bodies`; and how many web sockets an owner may have.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config::Size, error::Fault, owner::Owner};

/// What is not larger is not counted, bytes.
const SMALL: u64 = 256 * 1024;

/// Web sockets of one owner.
const MOST_SOCKETS: usize = 16;

/// The account. Clones share it.
#[derive(Clone, Debug)]
pub struct Room(Arc<Account>);

#[derive(Debug)]
struct Account {
    /// KiB that are left.
    kib: Arc<Semaphore>,
    sockets: Mutex<HashMap<Owner, usize>>,
}

impl Room {
    /// For so many bytes.
    pub fn new(most: Size) -> Self {
        let kib = usize::try_from(most.0 / 1024).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Account { kib: Arc::new(Semaphore::new(kib)), sockets: Mutex::default() }))
    }

    /// Room for so many bytes, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Fault::Full`] if there is not as much.
    pub fn take(&self, bytes: u64) -> Result<Taken, Fault> {
        if bytes <= SMALL {
            return Ok(Taken(None));
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let message = "too many large bodies are on their way in";
        let full = |_| Fault::Full { retry_after: 2, message: message.into() };
        self.0.kib.clone().try_acquire_many_owned(kib).map(|permit| Taken(Some(permit))).map_err(full)
    }

    /// One more web socket of an owner, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Fault::Full`].
    pub fn sit(&self, owner: &Owner) -> Result<Seat, Fault> {
        let mut sockets = self.0.sockets();
        let taken = sockets.entry(owner.clone()).or_default();
        if *taken >= MOST_SOCKETS {
            let message = format!("there may be {MOST_SOCKETS} web sockets of one key");
            return Err(Fault::Full { retry_after: 10, message });
        }
        *taken += 1;
        Ok(Seat { account: self.0.clone(), owner: owner.clone() })
    }
}

impl Account {
    fn sockets(&self) -> MutexGuard<'_, HashMap<Owner, usize>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that was taken.
#[derive(Debug)]
pub struct Taken(Option<OwnedSemaphorePermit>);

impl Taken {
    /// Gives back what is above so many bytes.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let more = permit.num_permits().saturating_sub(bytes.div_ceil(1024));
            drop(permit.split(more));
        }
    }
}

/// A web socket's place.
#[derive(Debug)]
pub struct Seat {
    account: Arc<Account>,
    owner: Owner,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sockets = self.account.sockets();
        if let Some(taken) = sockets.get_mut(&self.owner) {
            *taken -= 1;
            if *taken == 0 {
                sockets.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back() {
        let room = Room::new(Size(4 << 20));
        let mut first = room.take(4 << 20).unwrap();
        assert!(matches!(room.take(1 << 20), Err(Fault::Full { .. })));
        room.take(SMALL).unwrap();
        first.shrink(3 << 20);
        drop(room.take(1 << 20).unwrap());
        drop(first);
        room.take(4 << 20).unwrap();
        assert!(room.take(u64::MAX).is_err());
    }

    #[test]
    fn sockets_are_counted_for_each_owner() {
        let (room, one, other) = (Room::new(Size(0)), Owner("one".into()), Owner("other".into()));
        let mut seats: Vec<Seat> = (0..MOST_SOCKETS).map(|_| room.sit(&one).unwrap()).collect();
        assert!(matches!(room.sit(&one), Err(Fault::Full { .. })));
        room.sit(&other).unwrap();
        seats.pop();
        seats.push(room.sit(&one).unwrap());
        drop(seats);
        assert!(room.0.sockets().is_empty());
    }
}
