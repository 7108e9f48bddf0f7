//! Weights in the form that a backend's kernels read, kept from one use to the next.
//!
//! In int8 a weight is rounded and laid into panels at every product: a tenth of a step's time where a picture has few tokens.
//! [`Kept`] is a place for the result. Whoever plans the memory opens it; the backend fills it at the next product and lets go of
//! the weight's mapped bytes as it reads them; closing it empties it. What is computed is the same in every bit.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The place for one weight; clones are the same place.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
enum State {
    #[default]
    Closed,
    Open,
    Full {
        form: Arc<dyn Any + Send + Sync>,
        taken: Taken,
    },
}

/// What a weight takes that is kept, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// In the form that kernels read.
    pub bytes: u64,
    /// As it is stored, which need not be in memory then.
    pub stored: u64,
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weight is kept from its next product on.
    pub fn open(&self) {
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            *state = State::Open;
        }
    }

    /// The weight is not kept any more; a product that is being computed has it to its end.
    pub fn close(&self) {
        *self.state() = State::Closed;
    }

    /// What is taken, if the weight is kept by now.
    pub fn taken(&self) -> Option<Taken> {
        match *self.state() {
            State::Closed | State::Open => None,
            State::Full { taken, .. } => Some(taken),
        }
    }

    /// The form, made now if it may be. `None` if it may not, or if another backend has made one of its own. Who asks
    /// meanwhile waits.
    pub(crate) fn get_or_make<T: Any + Send + Sync>(&self, make: impl FnOnce() -> (T, Taken)) -> Option<Arc<T>> {
        let mut state = self.state();
        if matches!(*state, State::Open) {
            let (form, taken) = make();
            *state = State::Full { form: Arc::new(form), taken };
        }
        match &*state {
            State::Full { form, .. } => form.clone().downcast().ok(),
            State::Closed | State::Open => None,
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.state() {
            State::Closed => f.write_str("Closed"),
            State::Open => f.write_str("Open"),
            State::Full { taken, .. } => taken.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_made_once_while_it_may_be() {
        let kept = Kept::default();
        let taken = Taken { bytes: 3, stored: 5 };
        let make = |number: u32| move || (number, taken);
        assert_eq!(kept.get_or_make(make(1)), None);
        kept.open();
        assert_eq!(kept.taken(), None);
        assert_eq!(kept.get_or_make(make(2)).as_deref(), Some(&2));
        kept.clone().open();
        assert_eq!(kept.get_or_make(make(3)).as_deref(), Some(&2));
        assert_eq!(kept.taken(), Some(taken));
        // Another backend's form is none of ours.
        assert_eq!(kept.get_or_make(|| ("four", taken)), None);
        let form: Option<Arc<u32>> = kept.get_or_make(make(5));
        kept.clone().close();
        assert_eq!(kept.get_or_make(make(6)), None);
        assert_eq!((kept.taken(), form.as_deref()), (None, Some(&2)));
        kept.open();
        assert_eq!(kept.get_or_make(make(7)).as_deref(), Some(&7));
    }
}
