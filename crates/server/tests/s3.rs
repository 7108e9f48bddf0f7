//! Pictures in a bucket: against a stand-in that is in this file, a few of S3's verbs behind the signature that Amazon documents
//! (Signature Version 4). The same server was tried by hand with moto, which checks signatures too.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, Response, StatusCode, Uri, header},
};
use futures_util::TryStreamExt;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use server::{
    blobs::{Blobs, NewBlob, Place, Purpose},
    config::{Config, S3, Secret},
    error::Fault,
    owner::Owner,
    reload::Again,
    start::{Running, StartError},
    stock::Surroundings,
};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};

const HOUR: Duration = Duration::from_hours(1);
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// The service: one bucket, one account.
struct Stand {
    at: SocketAddr,
    objects: Objects,
    runtime: Option<Runtime>,
}

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

impl Stand {
    fn up() -> Self {
        let mut stand = Self { at: "127.0.0.1:0".parse().unwrap(), objects: Objects::default(), runtime: None };
        stand.start();
        stand
    }

    fn start(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = TcpListener::bind(self.at).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.at = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(self.objects.clone());
        runtime.spawn(async move { axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await });
        self.runtime = Some(runtime);
    }

    /// As if the machine were switched off: with all connections.
    fn stop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    fn s3(&self) -> S3 {
        S3 {
            bucket: Some("pictures".into()),
            prefix: Some("darkroom/of-me".into()),
            region: Some("eu-central-1".into()),
            endpoint: Some(format!("http://{}", self.at)),
            access_key_id: Some("AKIAIOSFODNN7EXAMPLE".into()),
            secret_access_key: Some(Secret(SECRET.into())),
            session_token: Some(Secret("a-token/for+now==".into())),
        }
    }

    fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(
    State(objects): State<Objects>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let said = |status: StatusCode, body: String| Response::builder().status(status).body(Body::from(body)).unwrap();
    let refuse = |status, code: &str| said(status, format!("<Error><Code>{code}</Code></Error>"));
    if let Err(code) = check(&method, &uri, &headers, &body) {
        return refuse(StatusCode::FORBIDDEN, code);
    }
    let path = percent_encoding::percent_decode_str(uri.path()).decode_utf8().unwrap();
    let (bucket, key) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    if bucket != "pictures" {
        return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
    }
    let mut objects = objects.lock().unwrap();
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect();
    match (method.as_str(), key) {
        ("GET", "") => said(StatusCode::OK, listed(&objects, &query)),
        ("POST", "") if query.contains_key("delete") => {
            let asked = String::from_utf8(body.to_vec()).unwrap();
            let keys = asked.split("<Key>").skip(1).map(|key| key.split_once("</Key>").unwrap().0);
            let gone = keys.map(|key| {
                objects.remove(key);
                format!("<Deleted><Key>{key}</Key></Deleted>")
            });
            said(StatusCode::OK, format!("<DeleteResult>{}</DeleteResult>", gone.collect::<Vec<_>>().concat()))
        }
        ("PUT", key) => {
            objects.insert(key.to_owned(), body);
            Response::builder().header(header::ETAG, "\"1\"").body(Body::empty()).unwrap()
        }
        ("GET", key) => {
            let Some(bytes) = objects.get(key) else { return refuse(StatusCode::NOT_FOUND, "NoSuchKey") };
            let range = headers[header::RANGE].to_str().unwrap().strip_prefix("bytes=").unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            Response::builder()
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::ETAG, "\"1\"")
                .header(header::LAST_MODIFIED, "Fri, 24 May 2013 00:00:00 GMT")
                .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", bytes.len()))
                .body(Body::from(bytes.slice(first..=last)))
                .unwrap()
        }
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

/// Two objects a page, so that all that is more than two takes several.
fn listed(objects: &BTreeMap<String, Bytes>, query: &BTreeMap<String, String>) -> String {
    let prefix = query.get("prefix").map_or("", String::as_str);
    let after = query.get("continuation-token").map_or("", String::as_str);
    let mut rest = objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after).peekable();
    let page: Vec<_> = rest.by_ref().take(2).collect();
    let objects = page.iter().map(|(key, bytes)| {
        let (size, when) = (bytes.len(), "2013-05-24T00:00:00.000Z");
        format!("<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{when}</LastModified></Contents>")
    });
    let objects = objects.collect::<Vec<_>>().concat();
    let next = page.last().filter(|_| rest.peek().is_some());
    let next = next.map(|(key, _)| format!("<NextContinuationToken>{key}</NextContinuationToken>")).unwrap_or_default();
    format!("<ListBucketResult>{objects}{next}</ListBucketResult>")
}

/// Every byte but these is written as `%XX` in what is signed.
const PLAIN: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Signature Version 4, as the service sees it: the code of S3's error if it is not right.
fn check(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<(), &'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let authorization = text("authorization").strip_prefix("AWS4-HMAC-SHA256 ").ok_or("AccessDenied")?;
    let parts: BTreeMap<&str, &str> = authorization.split(',').filter_map(|part| part.trim().split_once('=')).collect();
    let [credential, signed, signature] = ["Credential", "SignedHeaders", "Signature"].map(|name| parts[name]);
    let (id, scope) = credential.split_once('/').unwrap();
    if id != "AKIAIOSFODNN7EXAMPLE" {
        return Err("InvalidAccessKeyId");
    }
    if !text("x-amz-security-token").is_empty() && text("x-amz-security-token") != "a-token/for+now==" {
        return Err("InvalidToken");
    }
    if text("x-amz-content-sha256") != hex(&Sha256::digest(body)) {
        return Err("XAmzContentSHA256Mismatch");
    }
    let all = headers.keys().filter(|name| *name == header::HOST || name.as_str().starts_with("x-amz-"));
    if !all.into_iter().all(|name| signed.split(';').any(|part| part == name)) {
        return Err("AccessDenied");
    }
    let [date, region, ..] = scope.split('/').collect::<Vec<_>>()[..] else { return Err("AccessDenied") };
    if !matches!(region, "eu-central-1" | "us-east-1") {
        return Err("AuthorizationHeaderMalformed");
    }
    let coded = |text: &str| percent_encoding::utf8_percent_encode(text, PLAIN).to_string();
    let pairs = url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes());
    let mut query: Vec<String> = pairs.map(|(name, value)| format!("{}={}", coded(&name), coded(&value))).collect();
    query.sort();
    let lines: Vec<String> = signed.split(';').map(|name| format!("{name}:{}\n", text(name).trim())).collect();
    let hash = text("x-amz-content-sha256");
    let request = format!("{method}\n{}\n{}\n{}\n{signed}\n{hash}", uri.path(), query.join("&"), lines.concat());
    let request = hex(&Sha256::digest(request));
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{request}", text("x-amz-date"));
    let mac = |key: &[u8], text: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let steps = [date, region, "s3", "aws4_request", &to_sign];
    let right = steps.iter().fold(format!("AWS4{SECRET}").into_bytes(), |key, step| mac(&key, step));
    if hex(&right) == signature { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The first example of "Signature Calculations for the Authorization Header" in Amazon's documentation of S3.
#[test]
fn the_stand_in_checks_as_amazon_documents() {
    let request = |signature: &str| {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature={signature}"
        );
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", empty),
            ("x-amz-date", "20130524T000000Z"),
            ("authorization", &authorization),
        ] {
            headers.insert(header::HeaderName::from_static(name), value.parse().unwrap());
        }
        check(&Method::GET, &"/test.txt".parse().unwrap(), &headers, b"")
    };
    assert_eq!(request("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"), Ok(()));
    assert_eq!(
        request("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb42"),
        Err("SignatureDoesNotMatch")
    );
}

async fn open(s3: &S3) -> Result<Blobs, Fault> {
    Blobs::open(&Place::S3(s3.clone()), 1 << 30).await
}

/// The sentence of a refused start.
async fn told(s3: &S3) -> String {
    let Err(fault) = open(s3).await else { panic!("it opened") };
    assert!(matches!(fault, Fault::Unavailable(_)), "{fault:?}");
    let text = fault.to_string();
    assert!(!text.contains(SECRET) && !text.contains("http://127.0.0.1:1/"), "{text}");
    text
}

#[tokio::test]
async fn what_was_put_is_there_after_a_restart() {
    let stand = Stand::up();
    let blobs = open(&stand.s3()).await.unwrap();
    let owner = Owner::anyone();
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let large = Bytes::from(large);
    let mut kept = Vec::new();
    for (bytes, name) in
        [(large.clone(), "large.bin"), (Bytes::new(), "empty"), (Bytes::from_static(b"five!"), "ü.txt")]
    {
        kept.push(blobs.put(bytes, NewBlob::new(Purpose::Upload, "text/plain", name, HOUR, &owner)).await.unwrap());
    }
    let first = &stand.names()[0];
    assert!(first.starts_with("darkroom/of-me/") && first.len() == "darkroom/of-me/ab/".len() + 32, "{first}");

    // What others keep there is not ours, and not in the way.
    let strange = [
        ("darkroom/of-me/", ""),
        ("darkroom/of-me/notes.txt", "mine"),
        ("darkroom/of-me/ab/ab", "{}\n"),
        ("elsewhere", "x"),
    ];
    for (name, text) in strange {
        stand.objects.lock().unwrap().insert(name.into(), text.into());
    }
    drop(blobs);
    let blobs = open(&stand.s3()).await.unwrap();
    assert_eq!(blobs.used(), (3, 20_000_005));
    let (meta, bytes) = blobs.get(&kept[0].id).await.unwrap();
    assert!(meta == kept[0] && bytes == large, "other bytes came back");
    assert_eq!(blobs.get(&kept[1].id).await.unwrap().1, Bytes::new());
    for (from, to) in [(0, 1), (1, 4), (19_000_000, 20_000_000)] {
        let parts: Vec<Bytes> = blobs.stream(&kept[0].id, from, to).await.unwrap().try_collect().await.unwrap();
        assert_eq!(parts.concat(), large[from as usize..to as usize]);
    }
    assert_eq!(blobs.list(|blob| blob.purpose == Purpose::Upload && blob.owner == owner).len(), 3);

    for blob in &kept {
        blobs.delete(&blob.id).await.unwrap();
    }
    assert_eq!(stand.names().len(), strange.len(), "only ours went");
    assert!(matches!(blobs.get(&kept[0].id).await, Err(Fault::NotFound(_))));
    blobs.delete(&kept[0].id).await.unwrap();
    assert_eq!(blobs.used(), (0, 0));
}

#[tokio::test]
async fn time_ends_a_blob() {
    let stand = Stand::up();
    let blobs = open(&stand.s3()).await.unwrap();
    let soon = Duration::from_millis(300);
    let owner = Owner::anyone();
    let result = |keep| NewBlob::new(Purpose::Result, "image/png", "a", keep, &owner);
    blobs.put(Bytes::from_static(b"a"), result(soon)).await.unwrap();
    let stays = blobs.put(Bytes::from_static(b"b"), result(HOUR)).await.unwrap();
    tokio::time::sleep(soon).await;
    drop(blobs);
    let again = open(&stand.s3()).await.unwrap(); // looks for what is over at once
    assert_eq!(again.used(), (1, 1));
    assert_eq!(stand.names(), [format!("darkroom/of-me/{}/{}", &stays.id.0[..2], stays.id)]);
}

#[tokio::test]
async fn what_is_wrong_is_said_at_the_start() {
    let stand = Stand::up();
    let right = stand.s3();
    open(&right).await.unwrap();
    let wrong: [(S3, &str); 6] = [
        (S3 { bucket: Some("other".into()), ..right.clone() }, "no such bucket; see s3.bucket"),
        (S3 { access_key_id: Some("AKIA2".into()), ..right.clone() }, "see s3.access_key_id"),
        (S3 { secret_access_key: Some(Secret("x".into())), ..right.clone() }, "see s3.secret_access_key"),
        (S3 { session_token: Some(Secret("old".into())), ..right.clone() }, "see s3.session_token"),
        (S3 { region: Some("mars-north-1".into()), ..right.clone() }, "see s3.region"),
        (S3 { endpoint: Some("http://127.0.0.1:1".into()), ..right.clone() }, "refused"),
    ];
    for (s3, said) in wrong {
        let started = Instant::now();
        let text = told(&s3).await;
        assert!(text.contains(said), "{said}: {text}");
        assert!(started.elapsed() < Duration::from_secs(20), "{text}");
    }
    // An object that cannot be named is somebody else's mistake, and the way around it is told.
    stand.objects.lock().unwrap().insert("darkroom/of-me//x".into(), Bytes::from_static(b"x"));
    assert!(told(&right).await.contains("s3.prefix"));
}

/// A whole server: pictures are made, the service goes away and comes back.
#[test]
fn a_bucket_that_goes_away_stops_nothing_else() {
    let mut stand = Stand::up();
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::in_folder(folder.path());
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.s3 = stand.s3();
    config.store.results = Duration::from_mins(10);

    let mut wrong = config.clone();
    wrong.s3.bucket = Some("other".into());
    let Err(error) = runtime.block_on(Running::start(wrong.clone(), again(wrong), Surroundings::default())) else {
        panic!("it started")
    };
    assert!(matches!(&error, StartError::Part(fault) if fault.to_string().contains("s3.bucket")), "{error}");

    let (listeners, running) =
        runtime.block_on(Running::start(config.clone(), again(config), Surroundings::default())).unwrap();
    let url = listeners.urls()[0].clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = runtime.spawn(running.until(listeners, async move { drop(stopped.await) }));
    let client = reqwest::Client::new();
    let get = |address: String| {
        runtime.block_on(async {
            let answer = client.get(address).send().await.unwrap();
            (answer.status().as_u16(), answer.bytes().await.unwrap())
        })
    };
    let post = |path: &str, body: Value| {
        runtime.block_on(async {
            let request = client.post(format!("{url}{path}")).header("content-type", "application/json");
            let answer = request.body(body.to_string()).send().await.unwrap();
            let status = answer.status().as_u16();
            (status, serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap())
        })
    };
    let draw = || post("/v1/images/generations", json!({"prompt": "a key", "size": "64x64", "steps": 1}));

    let (status, made) = draw();
    assert_eq!(status, 200, "{made}");
    let file = made["data"][0]["url"].as_str().unwrap().to_owned();
    let (status, picture) = get(file.clone());
    assert!(status == 200 && picture.starts_with(b"\x89PNG"), "{status}");
    assert_eq!(stand.names().len(), 1);
    let head = runtime.block_on(client.head(&file).send()).unwrap();
    let age = head.headers()["cache-control"].to_str().unwrap().split(['=', ',']).nth(2).unwrap().to_owned();
    assert!(
        (500..=600).contains(&age.parse::<u32>().unwrap()),
        "as long as the operator says, not the vendor's hour: {age}"
    );

    stand.stop();
    let (status, refused) = draw();
    assert_eq!((status, refused["error"]["code"].as_str()), (503, Some("unavailable")), "{refused}");
    assert_eq!(get(file.clone()).0, 503);
    assert_eq!(get(format!("{url}/healthz")).0, 200);
    let ask = json!({"prompt": "a key", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1});
    let (status, refused) = post("/fal/run/fal-ai/flux/krea", ask);
    assert!(status == 503 && refused["detail"].is_string(), "{status} {refused}");

    stand.start();
    assert_eq!(draw().0, 200);
    assert_eq!(get(file).1, picture);
    drop(stop);
    runtime.block_on(server).unwrap().unwrap();
}

/// Nothing of the configuration changes.
fn again(config: Config) -> Again {
    Box::new(move || Ok(config.clone()))
}
