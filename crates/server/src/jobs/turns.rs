//! Who may fetch pictures next.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::owner::Owner;

/// Jobs whose pictures are fetched at the same time.
const AT_ONCE: usize = 8;

/// The same of one owner: those whose servers are slow leave room for others.
const AT_ONCE_OF_OWNER: usize = 4;

/// Turns at fetching.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    owners: Mutex<HashMap<Owner, Weak<Semaphore>>>,
}

/// A turn; the next may begin when it is dropped.
pub(super) struct Turn {
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
    /// Known as long as somebody waits or fetches.
    _owner: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), owners: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn; in line from the call on.
    pub(super) fn turn(&self, owner: &Owner) -> impl Future<Output = Turn> + Send + 'static {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, own| own.strong_count() > 0);
        let known = owners.get(owner).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| Arc::new(Semaphore::new(AT_ONCE_OF_OWNER)));
        owners.insert(owner.clone(), Arc::downgrade(&own));
        let all = self.all.clone();
        async move {
            // Neither is ever closed. First its own, so that who waits for that keeps nobody else.
            let permit = own.clone().acquire_owned().await.ok();
            Turn { _all: all.acquire_owned().await.ok(), _own: permit, _owner: own }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_owner_leaves_room_for_others() {
        let turns = Turns::default();
        let [slow, other] = ["slow", "other"].map(|name| Owner(name.into()));
        let mut have = Vec::new();
        for _ in 0..AT_ONCE_OF_OWNER {
            have.push(turns.turn(&slow).now_or_never().expect("a turn"));
        }
        assert!(turns.turn(&slow).now_or_never().is_none());
        for _ in 0..AT_ONCE - AT_ONCE_OF_OWNER {
            have.push(turns.turn(&other).now_or_never().expect("a turn"));
        }
        have.clear();
        assert!(turns.turn(&slow).now_or_never().is_some());
        assert_eq!(turns.owners.lock().unwrap().len(), 1, "of those that are gone nothing is kept for long");
    }
}
