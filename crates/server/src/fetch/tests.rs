//! Servers on this machine stand for the internet: `127.0.0.2` is added to what may be asked, all else of this machine is not.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::{any, get},
};

use super::*;
use crate::{
    blobs::{NewBlob, Place, Purpose},
    config::Size,
};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\nand more";

/// Names to addresses, one answer after the other.
#[derive(Default)]
struct Told(Mutex<HashMap<&'static str, Vec<&'static str>>>, AtomicUsize);

impl Lookup for Told {
    fn lookup(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let mut all = self.0.lock().unwrap();
        let answer =
            all.get_mut(name.as_str()).map(|answers| if answers.len() > 1 { answers.remove(0) } else { answers[0] });
        let ips = answer.map(|ips| ips.split(' ').map(|ip| ip.parse().unwrap()).collect());
        Box::pin(async move { ips.ok_or_else(|| io::Error::other("no such name")) })
    }
}

struct Stand {
    fetcher: Fetcher,
    blobs: Blobs,
    told: Arc<Told>,
    /// Of the server that may be asked.
    port: u16,
    /// How often the one that may not be asked was.
    reached: Arc<AtomicUsize>,
    inside: u16,
    _folder: tempfile::TempDir,
}

async fn listen(ip: &str, app: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    port
}

async fn stand(change: impl FnOnce(&mut Config)) -> Stand {
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = reached.clone();
    let secret = Router::new().fallback(any(move || async move {
        counted.fetch_add(1, Ordering::SeqCst);
        PNG
    }));
    let inside = listen("127.0.0.1", secret).await;
    let to = |uri: Uri| async move {
        let to = percent_encoding::percent_decode_str(uri.query().unwrap_or("")).decode_utf8_lossy().into_owned();
        (StatusCode::FOUND, [(header::LOCATION, to)])
    };
    let endless = || async {
        let pieces = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[0; 4096])));
        axum::body::Body::from_stream(pieces)
    };
    let slow = || async {
        tokio::time::sleep(Duration::from_mins(1)).await;
        PNG
    };
    let outside = Router::new()
        .route("/a.png", get(|| async { PNG }))
        .route("/page", get(|| async { "<html>" }))
        .route("/to", any(to))
        .route("/loop", get(|| async { (StatusCode::FOUND, [(header::LOCATION, "/loop")]) }))
        .route("/endless", get(endless))
        .route("/slow", get(slow))
        .route(
            "/told",
            any(|headers: HeaderMap, body: Bytes| async move {
                let right = headers.get("x-a").is_some() && body == "{}";
                if right { StatusCode::NO_CONTENT } else { StatusCode::BAD_REQUEST }.into_response()
            }),
        );
    let port = listen("127.0.0.2", outside).await;

    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&Place::Folder(folder.path().into()), 1 << 20).await.unwrap();
    let mut config = Config::in_folder(folder.path());
    config.allowed_networks = vec!["127.0.0.2/32".parse().unwrap()];
    config.limits.fetch = Size(1 << 20);
    config.limits.fetch_time = Duration::from_millis(1500);
    change(&mut config);
    let told = Arc::new(Told::default());
    told.0.lock().unwrap().extend([
        ("good.example", vec!["127.0.0.2"]),
        ("evil.example", vec!["127.0.0.1"]),
        ("both.example", vec!["127.0.0.1 127.0.0.2"]),
        ("six.example", vec!["::1 ::ffff:127.0.0.1 fe80::1"]),
        ("turns.example", vec!["127.0.0.2", "127.0.0.1"]),
    ]);
    let lookup: Arc<dyn Lookup> = told.clone();
    let fetcher = Fetcher::with_lookup(&config, blobs.clone(), Metrics::new(Vec::new()), &lookup).unwrap();
    Stand { fetcher, blobs, told, port, reached, inside, _folder: folder }
}

fn kind(fetched: Result<Bytes, Fault>) -> (PictureFault, String) {
    match fetched {
        Err(Fault::Picture { field, kind, message }) if field == "image_url" => (kind, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_inside_is_reached() {
    let it = stand(|_| ()).await;
    let (port, inside) = (it.port, it.inside);
    let good = it.fetcher.picture(&format!("http://good.example:{port}/a.png"), "image_url").await;
    assert_eq!(good.as_deref(), Ok(PNG));
    let both = it.fetcher.picture(&format!("http://both.example:{port}/a.png"), "image_url").await;
    assert_eq!(both.as_deref(), Ok(PNG), "by the address that may be asked");
    for address in [
        format!("http://127.0.0.1:{inside}/"),
        format!("http://localhost.:{inside}/"),
        format!("http://2130706433:{inside}/"),
        format!("http://0177.0.0.1:{inside}/"),
        format!("http://0x7f000001:{inside}/"),
        format!("http://0x7f.1:{inside}/"),
        format!("http://127.1:{inside}/"),
        format!("http://①②⑦.0.0.1:{inside}/"),
        format!("http://0:{inside}/"),
        format!("http://[::1]:{inside}/"),
        format!("http://[::ffff:127.0.0.1]:{inside}/"),
        format!("http://[::ffff:7f00:1]:{inside}/"),
        format!("http://[64:ff9b::127.0.0.1]:{inside}/"),
        format!("http://evil.example:{inside}/"),
        format!("http://six.example:{inside}/"),
        format!("http://user:pass@127.0.0.1:{inside}/"),
        format!("http://good.example:{port}@127.0.0.1:{inside}/"),
        format!("http:\\\\127.0.0.1:{inside}\\"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "http://[::ffff:169.254.169.254]/".into(),
        "http://10.0.0.1/".into(),
        "http://metadata.google.internal/".into(),
        format!("http://good.example:{port}/to?http://127.0.0.1:{inside}/"),
        format!("http://good.example:{port}/to?http://evil.example:{inside}/"),
        format!("http://good.example:{port}/to?//127.0.0.1:{inside}/"),
        format!("http://good.example:{port}/to?http://2130706433:{inside}/"),
        format!("http://good.example:{port}/to?file:///etc/passwd"),
        format!("http://good.example:{port}/to?data:image/png;base64,AAAA"),
        "file:///etc/passwd".into(),
        "gopher://127.0.0.1:70/".into(),
        "ftp://good.example/".into(),
        "http://good.example:22/".into(),
        "http://".into(),
        "/etc/passwd".into(),
        String::new(),
        format!("http://good.example/{}", "a".repeat(10_000)),
    ] {
        let (kind, message) = kind(it.fetcher.picture(&address, "image_url").await);
        assert_eq!(kind, PictureFault::Download, "{address:.60}: {message}");
        assert!(!message.contains("refused") && !message.contains("127.0.0.1"), "tells nothing: {message}");
    }
    assert_eq!(it.reached.load(Ordering::SeqCst), 0, "not one of them arrived");
}

#[tokio::test]
async fn a_name_that_turns_is_asked_anew() {
    let it = stand(|_| ()).await;
    let at = format!("http://turns.example:{}/a.png", it.port);
    assert_eq!(it.fetcher.picture(&at, "image_url").await.as_deref(), Ok(PNG));
    assert_eq!(it.told.1.load(Ordering::SeqCst), 1, "one question for one connection");
    assert_eq!(kind(it.fetcher.picture(&at, "image_url").await).1, PRIVATE);
    let inside = format!("http://turns.example:{}/", it.inside);
    assert_eq!(kind(it.fetcher.picture(&inside, "image_url").await).1, PRIVATE);
    assert_eq!(it.reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn sizes_times_and_turns_are_bounded() {
    let it = stand(|_| ()).await;
    let asked = async |path: &str| {
        let at = format!("http://good.example:{}{path}", it.port);
        kind(it.fetcher.picture(&at, "image_url").await)
    };
    assert_eq!(asked("/endless").await.0, PictureFault::TooLarge);
    assert!(asked("/slow").await.1.contains("within 1 s"));
    assert!(asked("/loop").await.1.contains("more than 3 times"));
    assert!(asked("/none").await.1.contains("404"));
    assert_eq!(asked("/page").await.0, PictureFault::Decode);
    assert!(asked("/to").await.1.contains("more than 3 times"), "to itself");
}

#[tokio::test]
async fn what_is_ours_is_not_asked_for() {
    let it = stand(|_| ()).await;
    let owner = Owner::anyone();
    let hour = Duration::from_hours(1);
    let own = it
        .blobs
        .put(Bytes::from_static(PNG), NewBlob::new(Purpose::Result, "image/png", "0.png", hour, &owner))
        .await
        .unwrap();
    let held = it
        .blobs
        .put(Bytes::from_static(PNG), NewBlob::new(Purpose::Internal, "image/png", "0.png", hour, &owner))
        .await
        .unwrap();
    for base in ["http://localhost:8000", "https://fal.run", "http://10.0.0.1/darkroom", "https://pictures.example/v1"]
    {
        let fetched = it.fetcher.picture(&it.blobs.url(&own.id, base), "image_url").await;
        assert_eq!(fetched.as_deref(), Ok(PNG), "{base}");
        assert_eq!(it.fetcher.own(&it.blobs.url(&held.id, base)), None, "{base}");
    }
    let given = it.fetcher.given("data:;base64,iVBORw0KGgo", "image_url", &owner).await.unwrap();
    let id = given.id().clone();
    assert_eq!(it.blobs.meta(&id).unwrap().purpose, Purpose::Given);
    drop(given);
    crate::testing::until("nobody kept it", async || it.blobs.meta(&id).is_none()).await;
    assert_eq!(kind(it.fetcher.picture("data:,abc", "image_url").await).0, PictureFault::Decode);
    let large = format!("data:;base64,{}", "A".repeat(2 << 20));
    assert_eq!(kind(it.fetcher.picture(&large, "image_url").await).0, PictureFault::TooLarge);
}

#[tokio::test]
async fn webhooks_go_where_pictures_may_come_from() {
    let it = stand(|_| ()).await;
    let tell = async |fetcher: &Fetcher, at: String| {
        let headers =
            HeaderMap::from_iter([(header::HeaderName::from_static("x-a"), header::HeaderValue::from_static("b"))]);
        fetcher.tell(&at, headers, Bytes::from_static(b"{}"), Duration::from_secs(1)).await
    };
    let (port, inside) = (it.port, it.inside);
    assert_eq!(tell(&it.fetcher, format!("http://good.example:{port}/told")).await, Ok(204));
    let moved = format!("http://good.example:{port}/to?http://127.0.0.1:{inside}/");
    assert_eq!(tell(&it.fetcher, moved).await, Ok(302), "not followed");
    for evil in [
        format!("http://127.0.0.1:{inside}/"),
        format!("http://evil.example:{inside}/"),
        "http://169.254.169.254/".into(),
    ] {
        assert_eq!(tell(&it.fetcher, evil.clone()).await, Err(Unsent::Refused(PRIVATE.into())), "{evil}");
    }
    assert!(it.fetcher.may_tell("http://127.0.0.1/").is_err() && it.fetcher.may_tell("https://good.example/x").is_ok());
    assert!(matches!(tell(&it.fetcher, "http://good.example:1025/".into()).await, Err(Unsent::Failed(_))));
    assert_eq!(it.reached.load(Ordering::SeqCst), 0);

    let open = stand(|config| config.allow_private_webhooks = true).await;
    assert_eq!(tell(&open.fetcher, format!("http://127.0.0.1:{}/", open.inside)).await, Ok(200));
    assert!(tell(&open.fetcher, "http://169.254.169.254/".into()).await.is_err(), "not even then");
    let at = format!("http://127.0.0.1:{}/", open.inside);
    assert_eq!(kind(open.fetcher.picture(&at, "image_url").await).1, PRIVATE, "webhooks alone");
}
