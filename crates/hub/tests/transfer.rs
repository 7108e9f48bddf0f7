//! Downloads from a stand-in that speaks the hub's protocol: where bytes land, what happens when it fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use hub::{
    Error, Gate,
    cache::Cache,
    settings::{Patience, Settings, Token},
    transfer::{Hub, Pick, Role, Transfer, Wanted},
    watch::Event,
};
use support::{MEMBER, OUTSIDER, StandIn, noise, sha256};

const REPOSITORY: &str = "black-forest-labs/FLUX.1-Krea-dev";
const CARD: &str =
    "{\"license\":\"other\",\"license_name\":\"flux-1-dev-non-commercial-license\",\"license_link\":\"LICENSE.md\"}";

fn patience() -> Patience {
    Patience {
        attempts: 4,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_secs(2),
        silence: Duration::from_secs(5),
    }
}

fn settings(server: &StandIn, folder: &Path, token: Option<&str>) -> Settings {
    Settings {
        endpoint: server.endpoint.clone(),
        token: token.and_then(|token| Token::new(token, "HF_TOKEN").unwrap()),
        cache: folder.join("hub"),
        data: folder.join("data"),
        offline: false,
        proxy: None,
        patience: patience(),
    }
}

fn wanted(pick: Pick) -> [Wanted; 1] {
    [Wanted { repository: REPOSITORY.parse().unwrap(), revision: "main".into(), role: Role::Folder, pick }]
}

fn published(server: &StandIn, gated: bool) -> String {
    server.publish(
        REPOSITORY,
        gated,
        CARD,
        &[
            ("LICENSE.md", b"FLUX.1 [dev] Non-Commercial License v1.1.1\n".to_vec(), false),
            ("README.md", b"hello".to_vec(), false),
            ("flux1-krea-dev.safetensors", noise(400_000, 1), true),
            ("model_index.json", b"{}".to_vec(), false),
            ("text_encoder/config.json", Vec::new(), false),
            ("transformer/diffusion_pytorch_model.safetensors", noise(300_000, 2), true),
            ("vae/diffusion_pytorch_model.safetensors", noise(70_000, 3), true),
        ],
    )
}

fn quietly(_: Event<'_>) -> bool {
    true
}

fn pulled(settings: &Settings, pick: Pick) -> Result<Transfer, Error> {
    let hub = Hub::new(settings)?;
    let transfer = hub.prepare(&wanted(pick), &mut quietly)?;
    hub.fetch(&transfer, &mut quietly)?;
    Ok(transfer)
}

fn large(settings: &Settings) -> Vec<u8> {
    let cache = Cache::new(&settings.cache);
    let commit = cache.commit(&REPOSITORY.parse().unwrap(), "main").unwrap();
    fs::read(cache.path(&REPOSITORY.parse().unwrap(), &commit, "flux1-krea-dev.safetensors")).unwrap()
}

const FILE: &str = "flux1-krea-dev.safetensors";

#[test]
fn a_folder_lands_in_the_caches_layout_and_the_token_stays_at_the_hub() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    let commit = published(&server, true);
    server.faults.lock().unwrap().page = Some(3);
    let settings = settings(&server, folder.path(), Some(MEMBER));
    let transfer = pulled(&settings, Pick::Diffusers).unwrap();
    assert_eq!((transfer.total(), transfer.missing()), (300_000 + 70_000 + 2 + 43, 300_000 + 70_000 + 2 + 43));
    assert!(transfer.contents[0].gated && transfer.contents[0].files.len() == 7);

    let repository = settings.cache.join("models--black-forest-labs--FLUX.1-Krea-dev");
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), commit);
    let snapshot = repository.join("snapshots").join(&commit);
    let link = snapshot.join("transformer/diffusion_pytorch_model.safetensors");
    let blob = sha256(&noise(300_000, 2));
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(&format!("../../../blobs/{blob}")));
    assert_eq!(fs::read(link).unwrap(), noise(300_000, 2));
    assert_eq!(fs::read(snapshot.join("text_encoder/config.json")).unwrap(), b"");
    assert!(!snapshot.join(FILE).exists() && !snapshot.join("README.md").exists());
    let blobs: Vec<String> = fs::read_dir(repository.join("blobs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(blobs.iter().all(|name| !name.contains('.')) && blobs.len() == 5, "{blobs:?}");

    let seen = server.seen.lock().unwrap().clone();
    let authorised = |server: &str| seen.iter().filter(|s| s.server == server).all(|s| s.authorization.is_some());
    assert!(authorised("hub"));
    assert!(
        seen.iter().any(|s| s.server == "cdn")
            && seen.iter().filter(|s| s.server == "cdn").all(|s| s.authorization.is_none())
    );

    // A second time nothing is downloaded.
    server.seen.lock().unwrap().clear();
    assert_eq!(pulled(&settings, Pick::Diffusers).unwrap().missing(), 0);
    assert!(server.asked("cdn").is_empty());
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    server.faults.lock().unwrap().break_after = vec![150_000, 100_000, 1, 1, 1, 1, 1];
    pulled(&settings, Pick::File(FILE.into())).unwrap();
    assert_eq!(large(&settings), noise(400_000, 1));
    let ranges: Vec<Option<String>> =
        server.seen.lock().unwrap().iter().filter(|s| s.server == "cdn").map(|s| s.range.clone()).collect();
    assert_eq!(ranges[..3], [None, Some("bytes=150000-".into()), Some("bytes=250000-".into())]);
    assert_eq!(ranges.len(), 8, "as long as bytes come, patience does not end");
}

#[test]
fn another_run_goes_on_and_a_server_without_ranges_begins_anew() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    let incomplete = settings
        .cache
        .join("models--black-forest-labs--FLUX.1-Krea-dev/blobs")
        .join(format!("{}.incomplete", sha256(&noise(400_000, 1))));
    let stopped = |at: u64| {
        let hub = Hub::new(&settings).unwrap();
        let transfer = hub.prepare(&wanted(Pick::File(FILE.into())), &mut quietly).unwrap();
        let mut came = 0;
        let result = hub.fetch(&transfer, &mut |event| {
            if let Event::Received { bytes } = event {
                came += bytes;
            }
            came < at
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        fs::metadata(&incomplete).unwrap().len()
    };
    let kept = stopped(100_000);
    assert!((100_000..400_000).contains(&kept));
    assert!(
        !settings.cache.join("models--black-forest-labs--FLUX.1-Krea-dev/refs").exists(),
        "no name for what is not whole"
    );
    let hub = Hub::new(&settings).unwrap();
    let transfer = hub.prepare(&wanted(Pick::File(FILE.into())), &mut quietly).unwrap();
    assert_eq!(transfer.missing(), 400_000 - kept);

    server.faults.lock().unwrap().no_ranges = true;
    let mut dropped = 0;
    hub.fetch(&transfer, &mut |event| {
        if let Event::Dropped { bytes } = event {
            dropped += bytes;
        }
        true
    })
    .unwrap();
    assert_eq!((dropped, large(&settings)), (kept, noise(400_000, 1)));
    assert!(!incomplete.exists());
}

#[test]
fn what_was_left_by_others_is_checked_too() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    let incomplete = settings
        .cache
        .join("models--black-forest-labs--FLUX.1-Krea-dev/blobs")
        .join(format!("{}.incomplete", sha256(&noise(400_000, 1))));
    // Too long, complete but wrong, and a wrong beginning.
    for left in [vec![7; 500_000], vec![7; 400_000], vec![7; 1000]] {
        fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        fs::write(&incomplete, left).unwrap();
        pulled(&settings, Pick::File(FILE.into())).unwrap();
        assert_eq!(large(&settings), noise(400_000, 1));
        fs::remove_dir_all(&settings.cache).unwrap();
    }
}

#[test]
fn a_wrong_hash_is_tried_once_more_and_then_refused() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    server.faults.lock().unwrap().corrupt = 1;
    pulled(&settings, Pick::File(FILE.into())).unwrap();
    assert_eq!(large(&settings), noise(400_000, 1));

    fs::remove_dir_all(&settings.cache).unwrap();
    server.faults.lock().unwrap().corrupt = 5;
    let error = pulled(&settings, Pick::File(FILE.into())).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains("was promised"), "{error}");
    let blobs = settings.cache.join("models--black-forest-labs--FLUX.1-Krea-dev/blobs");
    let names: Vec<_> = fs::read_dir(blobs).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name == sha256(&noise(400_000, 1)).as_str()), "{names:?}");
}

fn gate(settings: &Settings) -> Gate {
    match pulled(settings, Pick::Diffusers) {
        Err(Error::Gate(gate)) => *gate,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gate_is_explained_by_what_is_missing() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, true);
    let told = |token: Option<&str>| gate(&settings(&server, folder.path(), token)).to_string();
    let page = format!("open {}/{REPOSITORY}", server.endpoint);
    let nobody = told(None);
    assert!(
        nobody.contains("make an account") && nobody.contains(&page) && nobody.contains("--token-file"),
        "{nobody}"
    );
    let wrong = told(Some("hf_wrong"));
    assert!(wrong.contains("from HF_TOKEN is not valid") && !wrong.contains("hf_wrong"), "{wrong}");
    let outside = told(Some(OUTSIDER));
    assert!(
        outside.contains("has no access yet") && outside.contains(&page) && outside.contains("restricted"),
        "{outside}"
    );
    // Nothing was downloaded for it.
    assert!(server.asked("cdn").is_empty() && !folder.path().join("hub").exists());
}

#[test]
fn what_is_not_there_is_said() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let told = |settings: &Settings, repository: &str, revision: &str, file: &str| {
        let wanted = Wanted {
            repository: repository.parse().unwrap(),
            revision: revision.into(),
            role: Role::Other,
            pick: Pick::File(file.into()),
        };
        Hub::new(settings).unwrap().prepare(&[wanted], &mut quietly).unwrap_err().to_string()
    };
    let nobody = settings(&server, folder.path(), None);
    let somebody = settings(&server, folder.path(), Some(MEMBER));
    let file = told(&nobody, REPOSITORY, "main", "flux1-krea.safetensors");
    assert!(
        file.contains("no file 'flux1-krea.safetensors'") && file.contains("400.0 kB  flux1-krea-dev.safetensors"),
        "{file}"
    );
    for settings in [&nobody, &somebody] {
        let repository = told(settings, "org/nothing", "main", "x");
        assert!(repository.contains("there is no model 'org/nothing'"), "{repository}");
    }
    assert!(told(&nobody, REPOSITORY, "v9", "x").contains("no such revision"));
    assert!(told(&nobody, REPOSITORY, "../x", "x").contains("is not a branch"));
}

#[test]
fn too_many_requests_and_trouble_are_waited_for() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    server.faults.lock().unwrap().statuses = vec![(429, Some("1".into())), (503, None), (502, None)];
    let hub = Hub::new(&settings).unwrap();
    let mut waits = Vec::new();
    let mut note = |event: Event<'_>| {
        if let Event::Waiting { seconds, why } = event {
            waits.push((seconds, why.to_owned()));
        }
        true
    };
    hub.prepare(&wanted(Pick::File(FILE.into())), &mut note).unwrap();
    assert!(waits.len() == 3 && waits[0].0 >= 1.0 && waits[0].1.contains("429") && waits[1].0 < 1.0, "{waits:?}");

    // Longer than patience: said, not waited for.
    server.faults.lock().unwrap().statuses = vec![(429, Some("3600".into()))];
    let told = pulled(&settings, Pick::File(FILE.into())).unwrap_err().to_string();
    assert!(told.contains("3600 s") && told.contains("a token raises the limit"), "{told}");
    server.faults.lock().unwrap().statuses = vec![(500, None); 9];
    let told = pulled(&settings, Pick::File(FILE.into())).unwrap_err().to_string();
    assert!(told.contains("is in trouble (500)") && told.contains("tried 4 times"), "{told}");
}

#[test]
fn listed_paths_that_lead_elsewhere_are_refused() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    for path in ["../../evil", "/etc/evil", "a/../../evil", "a//b"] {
        server.faults.lock().unwrap().listed = Some(path.into());
        let error = pulled(&settings, Pick::Pattern("*".into())).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    assert!(!folder.path().join("hub").exists());
}

#[test]
fn whoever_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = StandIn::start();
    published(&server, false);
    let with = |endpoint: &str| Settings { endpoint: endpoint.into(), ..settings(&server, folder.path(), None) };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = pulled(&with(&format!("http://{free}")), Pick::Diffusers).unwrap_err().to_string();
    assert!(refused.starts_with("127.0.0.1: refuses the connection") && refused.contains("HF_ENDPOINT"), "{refused}");
    // TLS where there is none.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let tls = pulled(&with(&format!("https://{address}")), Pick::Diffusers).unwrap_err().to_string();
    // A system without certificates trusts nobody, which is said before.
    assert!(tls.contains("no safe connection") || tls.contains("ca-certificates"), "{tls}");

    let offline = Settings { offline: true, ..with(&server.endpoint) };
    assert!(matches!(Hub::new(&offline), Err(Error::Offline(_))));
}

#[test]
fn two_at_once_download_once() {
    let (server, folder) = (StandIn::start(), tempfile::tempdir().unwrap());
    published(&server, false);
    let settings = settings(&server, folder.path(), None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pulled(&settings, Pick::File(FILE.into())).unwrap());
        }
    });
    assert_eq!(large(&settings), noise(400_000, 1));
    assert_eq!(server.asked("cdn").len(), 1);
}
