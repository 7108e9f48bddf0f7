//! Uploads that come in parts: which parts are there, until the last one is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value};

use crate::{
    blobs::BlobId,
    clock::{Millis, after, now},
    error::{Fault, Rule},
    owner::Owner,
};

/// How long an upload may take from its first word to its last part.
pub(crate) const LASTS: Duration = Duration::from_hours(1);

/// Most uploads in parts of one owner at the same time.
const MOST_OF_OWNER: usize = 100;

/// Most of all owners together.
const MOST_UPLOADS: usize = 2000;

/// Most parts of an upload.
pub(crate) const MOST_PARTS: u32 = 1000;

/// Uploads in parts that are not finished.
#[derive(Clone, Debug, Default)]
pub struct Uploads(Arc<Mutex<HashMap<(Owner, BlobId), Parts>>>);

/// The parts that are there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    until: Millis,
    bytes: u64,
    pub(crate) kept: BTreeMap<u32, Part>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) blob: BlobId,
    pub(crate) bytes: u64,
    /// As its uploader was told.
    pub(crate) etag: String,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Owner, BlobId), Parts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an upload may have (one more) part: to be asked before the part is stored.
    ///
    /// # Errors
    /// [`Fault::Full`].
    pub(crate) fn may_add(&self, owner: &Owner, id: &BlobId) -> Result<(), Fault> {
        let mut all = self.lock();
        let now = now();
        all.retain(|_, parts| parts.until > now);
        if all.contains_key(&(owner.clone(), id.clone())) {
            return Ok(());
        }
        let own = all.keys().filter(|(other, _)| other == owner).count();
        if own >= MOST_OF_OWNER || all.len() >= MOST_UPLOADS {
            return Err(Fault::Full { retry_after: 30, message: "too many uploads are under way".into() });
        }
        Ok(())
    }

    /// Counts a part; gives back the blob that it replaces.
    ///
    /// # Errors
    /// As [`Uploads::may_add`]; [`Fault::TooLarge`] if the parts together are. The part is not counted then.
    pub(crate) fn add(
        &self,
        owner: &Owner,
        id: &BlobId,
        number: u32,
        part: Part,
        most: u64,
    ) -> Result<Option<BlobId>, Fault> {
        self.may_add(owner, id)?;
        let mut all = self.lock();
        let parts = all.entry((owner.clone(), id.clone())).or_default();
        let before = parts.kept.get(&number).map_or(0, |part| part.bytes);
        let bytes = parts.bytes.saturating_sub(before).saturating_add(part.bytes);
        if bytes > most {
            return Err(Fault::TooLarge(format!("the file is larger than this server takes: {most} bytes")));
        }
        parts.bytes = bytes;
        parts.until = after(LASTS);
        Ok(parts.kept.insert(number, part).map(|before| before.blob))
    }

    /// What there is of an upload.
    pub(crate) fn parts(&self, owner: &Owner, id: &BlobId) -> Option<Parts> {
        self.lock().get(&(owner.clone(), id.clone())).cloned()
    }

    /// Forgets an upload.
    pub(crate) fn take(&self, owner: &Owner, id: &BlobId) -> Option<Parts> {
        self.lock().remove(&(owner.clone(), id.clone()))
    }
}

impl Parts {
    /// The parts that make up the file, in order: those that the last request lists, each with the tag that it was answered with.
    /// Without a list all of them, if none is missing in between.
    ///
    /// # Errors
    /// [`Fault::Invalid`] about `parts`. The upload can go on.
    pub(crate) fn listed(&self, body: &Map<String, Value>) -> Result<Vec<&Part>, Fault> {
        let wrong = |message: String| Err(Fault::invalid("parts", Rule::Other, message));
        let Some(list) = body.get("parts") else {
            let last = self.kept.keys().next_back().copied().unwrap_or(0);
            return match (1..=last).find(|number| !self.kept.contains_key(number)) {
                Some(missing) => wrong(format!("part {missing} did not come")),
                None => Ok(self.kept.values().collect()),
            };
        };
        let Some(list) = list.as_array().filter(|list| (1..=MOST_PARTS as usize).contains(&list.len())) else {
            return wrong(format!("has to be a list of 1 to {MOST_PARTS} parts"));
        };
        let mut found = BTreeMap::new();
        for part in list {
            let number = &part["partNumber"];
            let number = number.as_u64().or_else(|| number.as_str()?.parse().ok()).and_then(|n| u32::try_from(n).ok());
            let Some(number) = number else { return wrong("has a part without its partNumber".into()) };
            let Some(kept) = self.kept.get(&number) else { return wrong(format!("part {number} did not come")) };
            let tag = part["etag"].as_str().map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
            if tag.is_some_and(|tag| tag != kept.etag) {
                return wrong(format!("part {number} is another than the one with this etag"));
            }
            found.insert(number, kept);
        }
        Ok(found.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(name: u64) -> Part {
        Part { blob: BlobId(format!("{name:032x}")), bytes: 10, etag: format!("tag{name}") }
    }

    #[test]
    fn one_owner_leaves_room_for_others() {
        let (uploads, one, other) = (Uploads::default(), Owner("one".into()), Owner("other".into()));
        let id = |n: u64| part(n).blob;
        for n in 0..MOST_OF_OWNER as u64 {
            uploads.add(&one, &id(n), 1, part(n), 1000).unwrap();
        }
        assert!(matches!(uploads.may_add(&one, &id(1000)), Err(Fault::Full { .. })));
        assert!(uploads.may_add(&one, &id(0)).is_ok() && uploads.may_add(&other, &id(0)).is_ok());
        assert!(uploads.parts(&other, &id(0)).is_none(), "a name is its owner's");
        assert!(uploads.take(&one, &id(0)).is_some() && uploads.may_add(&one, &id(1000)).is_ok());
    }

    #[test]
    fn what_is_too_large_is_not_counted() {
        let (uploads, owner, id) = (Uploads::default(), Owner::anyone(), part(0).blob);
        assert_eq!(uploads.add(&owner, &id, 1, part(1), 20), Ok(None));
        assert_eq!(uploads.add(&owner, &id, 1, part(2), 20), Ok(Some(part(1).blob)));
        assert_eq!(uploads.add(&owner, &id, 2, part(3), 20), Ok(None));
        assert!(matches!(uploads.add(&owner, &id, 3, part(4), 20), Err(Fault::TooLarge(_))));
        assert_eq!(uploads.parts(&owner, &id).unwrap().kept.len(), 2);
    }

    #[test]
    fn the_list_decides() {
        let parts = Parts { kept: [(1, part(1)), (2, part(2)), (4, part(4))].into(), ..Parts::default() };
        let listed = |body: Value| {
            let tags = |parts: Vec<&Part>| parts.iter().map(|part| part.etag.clone()).collect::<Vec<_>>();
            parts.listed(body.as_object().unwrap()).map(tags)
        };
        let both = json!({"parts": [{"partNumber": 2, "etag": "\"tag2\""}, {"partNumber": "1", "etag": "tag1"}]});
        assert_eq!(listed(both).unwrap(), ["tag1", "tag2"]);
        assert_eq!(listed(json!({"parts": [{"partNumber": 4}]})).unwrap(), ["tag4"]);
        for (wrong, why) in [
            (json!({}), "part 3 did not come"),
            (json!({"parts": []}), "has to be a list of 1 to 1000 parts"),
            (json!({"parts": "1"}), "has to be a list of 1 to 1000 parts"),
            (json!({"parts": [{"partNumber": 3, "etag": "tag3"}]}), "part 3 did not come"),
            (json!({"parts": [{"partNumber": 1, "etag": "tag2"}]}), "part 1 is another than the one with this etag"),
            (json!({"parts": [{"etag": "tag2"}]}), "has a part without its partNumber"),
        ] {
            assert!(listed(wrong).unwrap_err().to_string().contains(why), "{why}");
        }
    }
}
