//! Blobs in a folder that goes away.

use super::*;

const HOUR: Duration = Duration::from_hours(1);
const PNG: &[u8] = b"\x89PNG\r\n\x1a\nand more";

fn new<'a>(name: &'a str, keep: Duration, owner: &'a Owner) -> NewBlob<'a> {
    NewBlob::new(Purpose::Result, "image/png", name, keep, owner)
}

async fn store(folder: &FilePath) -> Blobs {
    Blobs::open(&Place::Folder(folder.to_owned()), 1000).await.unwrap()
}

#[tokio::test]
async fn what_was_put_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = store(folder.path()).await;
    let put = blobs.put(Bytes::from_static(PNG), new("0.png", HOUR, &Owner::anyone())).await.unwrap();
    let empty = blobs
        .put(Bytes::new(), NewBlob { purpose: Purpose::Upload, mime: "text/plain", ..new("", HOUR, &Owner::anyone()) })
        .await
        .unwrap();
    // By `sha256sum`.
    assert_eq!(put.sha256, "409161981f6ba7ce8757e770b659abf9efe34475adc9b34e2833d2fbc716d03c");
    drop(blobs);
    std::fs::write(folder.path().join(&put.id.0[..2]).join(format!("{}#1", put.id)), b"half").unwrap();

    let again = store(folder.path()).await;
    let (meta, bytes) = again.get(&put.id).await.unwrap();
    assert_eq!((&*meta, &bytes[..]), (&*put, PNG));
    assert_eq!(again.get(&empty.id).await.unwrap().1, Bytes::new());
    assert_eq!(again.used(), (2, PNG.len() as u64));
    assert_eq!(again.url(&put.id, "http://host/"), format!("http://host/files/{}/0.png", put.id));
    let half = std::fs::read_dir(folder.path().join(&put.id.0[..2])).unwrap().flatten();
    assert!(!half.into_iter().any(|file| file.file_name().to_string_lossy().contains('#')), "a half file stays");

    again.delete(&put.id).await.unwrap();
    assert_eq!(again.get(&put.id).await.unwrap_err(), not_found());
}

#[tokio::test]
async fn time_ends_a_blob() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = store(folder.path()).await;
    let put = blobs.put(Bytes::from_static(PNG), new("a", Duration::ZERO, &Owner::anyone())).await.unwrap();
    assert!(blobs.meta(&put.id).is_none(), "it is over at once");
    assert_eq!(blobs.sweep().await, 1);
    assert_eq!(blobs.used(), (0, 0));
}

#[tokio::test]
async fn uploads_to_one_name_are_one_upload() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = store(folder.path()).await;
    let (owner, id) = (Owner::anyone(), BlobId::random().unwrap());
    let put = |bytes: &'static [u8]| blobs.put_told(id.clone(), Bytes::from_static(bytes), new("a", HOUR, &owner));
    let (first, second, third) = tokio::join!(put(b"one"), put(b"second"), put(b"the third"));
    let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
    assert!(first == second && second == third);
    assert_eq!(blobs.get(&id).await.unwrap().1.len() as u64, first.bytes);
    assert_eq!(blobs.used(), (1, first.bytes));
    let other = Owner("other".into());
    let refused = blobs.put_told(id.clone(), Bytes::new(), new("a", HOUR, &other)).await;
    assert_eq!(refused.unwrap_err(), not_found());

    // One that is over its time and still there is not counted twice.
    let id = BlobId::random().unwrap();
    for bytes in [&b"12345"[..], b"123"] {
        blobs.put_told(id.clone(), Bytes::from(bytes), new("a", Duration::ZERO, &owner)).await.unwrap();
    }
    assert_eq!(blobs.used(), (2, first.bytes + 3));
}

#[tokio::test]
async fn the_quota_spares_what_is_young_and_what_jobs_wait_for() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = store(folder.path()).await;
    let (rich, poor) = (Owner("rich".into()), Owner("poor".into()));
    let bytes = |n: usize| Bytes::from(vec![7; n]);
    let mut ids = Vec::new();
    for (owner, size) in [(&rich, 400), (&rich, 200), (&poor, 200)] {
        ids.push(blobs.put(bytes(size), new("a", HOUR, owner)).await.unwrap().id.clone());
    }
    blobs.put(bytes(100), NewBlob { purpose: Purpose::Internal, ..new("a", HOUR, &rich) }).await.unwrap();
    let refused = blobs.put(bytes(300), new("a", HOUR, &poor)).await.unwrap_err();
    assert!(matches!(refused, Fault::Unavailable(_)), "{refused}");
    assert_eq!(blobs.used().1, 900, "what was refused is not counted");

    // All of them grow old, the first a little more: they were put within one millisecond.
    for (id, entry) in &mut blobs.index().entries {
        let mut blob = Blob::clone(&entry.blob);
        blob.created -= 2 * SAFE_FOR + Millis::from(*id == ids[0]);
        entry.blob = blob.into();
    }
    blobs.put(bytes(300), new("a", HOUR, &poor)).await.unwrap();
    assert_eq!(blobs.used().1, 900 - 400 + 300, "the oldest of the one who holds the most went, and no other");
    assert!(blobs.meta(&ids[0]).is_none() && blobs.meta(&ids[1]).is_some() && blobs.meta(&ids[2]).is_some());
    assert!(matches!(blobs.put(bytes(1001), new("a", HOUR, &poor)).await, Err(Fault::TooLarge(_))));
}

#[tokio::test]
async fn what_jobs_were_given_takes_half_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = store(folder.path()).await;
    let owner = Owner::anyone();
    let give = |size: usize| blobs.give(Bytes::from(vec![7; size]), "image/png", "a", &owner);
    let (first, second) = (give(300).await.unwrap(), give(200).await.unwrap());
    assert!(matches!(give(1).await, Err(Fault::Unavailable(_))));
    let part = NewBlob { purpose: Purpose::Internal, ..new("part", HOUR, &owner) };
    assert!(matches!(blobs.put(Bytes::from_static(b"x"), part).await, Err(Fault::Unavailable(_))));
    blobs.put(Bytes::from(vec![7; 500]), new("result", HOUR, &owner)).await.unwrap();
    let kept = second.id().clone();
    second.keep();
    drop(first);
    crate::testing::until("it went", async || blobs.used().1 == 700).await;
    blobs.discard(&kept).await;
    assert_eq!(blobs.used().1, 500);
    // Of those who ask and go away nothing stays.
    drop(tokio::time::timeout(Duration::ZERO, give(100)).await);
    crate::testing::until("it went, too", async || blobs.used() == (1, 500)).await;
    let result = blobs.list(|_| true).remove(0);
    blobs.discard(&result.id).await;
    assert_eq!(blobs.used().1, 500, "nothing but what was given");
}

#[tokio::test]
async fn a_folder_that_is_none_is_a_sentence_without_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let Err(fault) = Blobs::open(&Place::Folder(file.join("sub")), 1000).await else { panic!("it opened") };
    assert!(matches!(&fault, Fault::Unavailable(said) if !said.contains(folder.path().to_str().unwrap())), "{fault}");
}

#[test]
fn names_mean_nothing_to_a_path() {
    for wrong in ["", "../../../../etc/passwd", "0123456789ABCDEF0123456789ABCDEF", "0123456789abcdef0123456789abcde/"]
    {
        assert!(wrong.parse::<BlobId>().is_err(), "{wrong}");
        assert!(BlobId(wrong.into()).place().is_none(), "{wrong}");
    }
}

#[test]
fn a_full_disk_is_said_so() {
    let full =
        |kind| fault(&object_store::Error::Generic { store: "LocalFileSystem", source: io::Error::from(kind).into() });
    assert_eq!(full(io::ErrorKind::StorageFull), Fault::Unavailable("the server's disk is full".into()));
    let read_only = Fault::Unavailable("the server may not write to its folder".into());
    assert_eq!(full(io::ErrorKind::ReadOnlyFilesystem), read_only);
}
