//! TLS by rustls with ring: an operator's certificate, or one signed by a development CA of the machine's own, for clients that
//! insist on https.
//!
//! The CA is only good for the names of this machine and the vendors' hosts (name constraints), so that its key, lying in a
//! folder, signs nothing else. It stays; the server's certificate is made anew at each start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum_server::tls_rustls::RustlsConfig;
use chrono::{Datelike, Duration, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{config::Tls, dialect::fal::HOSTS};

/// Names of this machine that the development certificate is for, beside fal's hosts, which its clients have built in, and those
/// that are added.
const OWN: [&str; 4] = ["localhost", "queue.localhost", "127.0.0.1", "::1"];

/// fal's hosts.
fn hosts() -> impl Iterator<Item = &'static str> {
    HOSTS.iter().map(|(host, _)| *host)
}

/// Domains that the CA is good for: what is below another one is in it. A CA that is there knows those it was made with, so a host
/// more in the table wants a new CA.
fn domains() -> impl Iterator<Item = &'static str> {
    let below = |host: &str| hosts().any(|other| host.strip_suffix(other).is_some_and(|rest| rest.ends_with('.')));
    std::iter::once("localhost").chain(hosts().filter(move |host| !below(host)))
}

/// So many days from today. (The type that this is has no name in `rcgen`.)
macro_rules! day {
    ($days:literal) => {{
        let day = Utc::now().date_naive() + Duration::days($days);
        date_time_ymd(day.year(), day.month() as u8, day.day() as u8)
    }};
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file without what it should hold.
    #[error("{}: holds no {expected} in PEM", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// A certificate and a key that cannot be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// What is no name of a machine.
    #[error("'{0}' is no name of a machine; expected one as box.lan or 192.168.1.5")]
    Name(String),
    /// A certificate that could not be made.
    #[error("a certificate could not be made: {0}")]
    Made(#[from] rcgen::Error),
}

/// The files of a development CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevCa {
    /// What clients have to trust.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The server's TLS, if it is configured.
///
/// # Errors
/// [`TlsError`], for the operator.
pub fn configure(tls: &Tls) -> Result<Option<RustlsConfig>, TlsError> {
    let (cert, key) = match (&tls.dev, &tls.cert, &tls.key) {
        (Some(folder), ..) => {
            let made = dev_ca(folder, &[])?;
            (made.cert, made.key)
        }
        (None, Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => return Ok(None),
    };
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let pem = fs::read(&cert).map_err(file(&cert))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    if chain.is_empty() {
        return Err(TlsError::Empty { path: cert, expected: "certificate" });
    }
    let pem = fs::read(&key).map_err(file(&key))?;
    let key =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Empty { path: key, expected: "private key" })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(RustlsConfig::from_config(config.into())))
}

/// Makes a CA in `folder` unless it is there, and a certificate signed by it for `localhost` and `more` names.
///
/// # Errors
/// [`TlsError`], for the operator.
pub fn dev_ca(folder: &Path, more: &[String]) -> Result<DevCa, TlsError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if let Some(wrong) = more.iter().find(|name| name.is_empty() || !name.chars().all(plain)) {
        return Err(TlsError::Name(wrong.clone()));
    }
    fs::create_dir_all(folder).map_err(file(folder))?;
    let at = |name: &str| folder.join(name);
    let (ca_path, ca_key_path) = (at("ca.pem"), at("ca-key.pem"));

    // What the CA may sign was decided when it was made: new names need a new one.
    let names_path = at("ca-names.txt");
    let known: Vec<String> = fs::read_to_string(&names_path)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .filter(|name| name.chars().all(plain))
        .collect();
    let new: Vec<String> = more.iter().filter(|name| !known.contains(name)).cloned().collect();
    let there = ca_path.is_file() && ca_key_path.is_file() && new.is_empty();
    let added: Vec<String> = known.into_iter().chain(new).collect();
    let params = ca_params(&added)?;
    let ca_key = if there {
        KeyPair::from_pem(&fs::read_to_string(&ca_key_path).map_err(file(&ca_key_path))?)?
    } else {
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write(&ca_key_path, &key.serialize_pem(), true).map_err(file(&ca_key_path))?;
        write(&ca_path, &certificate.pem(), false).map_err(file(&ca_path))?;
        write(&names_path, &added.join("\n"), false).map_err(file(&names_path))?;
        key
    };
    let issuer = Issuer::new(params, ca_key);

    let key = KeyPair::generate()?;
    let names: Vec<String> = OWN.into_iter().chain(hosts()).map(str::to_owned).chain(added).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "darkroom");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (day!(-1), day!(397));
    let certificate = params.signed_by(&key, &issuer)?;
    let made = DevCa { ca: ca_path, cert: at("localhost.pem"), key: at("localhost-key.pem") };
    write(&made.key, &key.serialize_pem(), true).map_err(file(&made.key))?;
    write(&made.cert, &certificate.pem(), false).map_err(file(&made.cert))?;
    Ok(made)
}

fn ca_params(more: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "darkroom's development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let own = [
        GeneralSubtree::IpAddress(CidrSubnet::V4([127, 0, 0, 0], [255, 0, 0, 0])),
        GeneralSubtree::IpAddress(one_v6()),
    ];
    let domains = domains().map(|domain| GeneralSubtree::DnsName(domain.to_owned()));
    let added = more.iter().map(|name| match name.parse() {
        Ok(std::net::IpAddr::V4(ip)) => GeneralSubtree::IpAddress(CidrSubnet::V4(ip.octets(), [255; 4])),
        Ok(std::net::IpAddr::V6(ip)) => GeneralSubtree::IpAddress(CidrSubnet::V6(ip.octets(), [255; 16])),
        Err(_) => GeneralSubtree::DnsName(name.clone()),
    });
    let permitted_subtrees = own.into_iter().chain(domains).chain(added).collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    (params.not_before, params.not_after) = (day!(-1), day!(3650));
    Ok(params)
}

fn one_v6() -> CidrSubnet {
    CidrSubnet::V6(std::net::Ipv6Addr::LOCALHOST.octets(), [255; 16])
}

/// A file of one's own; `secret`: that nobody else may read.
fn write(path: &Path, text: &str, secret: bool) -> io::Result<()> {
    use io::Write;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if secret { 0o600 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = secret;
    options.open(path)?.write_all(text.as_bytes())
}

/// How clients come to trust the CA.
pub fn recipes(made: &DevCa) -> String {
    let ca = made.ca.display();
    format!(
        "Python (httpx, requests):  export SSL_CERT_FILE={ca} REQUESTS_CA_BUNDLE={ca}\n\
         Node:                      export NODE_EXTRA_CA_CERTS={ca}\n\
         curl:                      curl --cacert {ca} https://localhost:8443/healthz\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ca_is_good_for_the_domains_that_it_always_was() {
        let was = ["localhost", "fal.run", "falrun.com", "rest.fal.ai", "rest.alpha.fal.ai", "v3.fal.media"];
        assert_eq!(domains().collect::<Vec<_>>(), was, "those who trust the old CA have to make and trust a new one");
    }

    #[test]
    fn the_ca_stays_and_the_certificate_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let made = dev_ca(folder.path(), &[]).unwrap();
        let (ca, cert) = (read(&made.ca), read(&made.cert));
        let again = dev_ca(folder.path(), &[]).unwrap();
        assert_eq!((again.clone(), read(&again.ca)), (made, ca.clone()));
        assert_ne!(read(&again.cert), cert);
        #[cfg(unix)]
        for secret in ["ca-key.pem", "localhost-key.pem"] {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(folder.path().join(secret)).unwrap().permissions().mode() & 0o777,
                0o600,
                "{secret}"
            );
        }
        dev_ca(folder.path(), &["box.lan".into(), "192.168.1.5".into()]).unwrap();
        assert_ne!(read(&again.ca), ca, "one that may sign the new names");
        for wrong in ["no name", "ü", "", "a\nb"] {
            assert!(matches!(dev_ca(folder.path(), &[wrong.into()]), Err(TlsError::Name(_))), "{wrong}");
        }
        let tls = Tls { dev: Some(folder.path().into()), ..Tls::default() };
        assert!(configure(&tls).unwrap().is_some());
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let made = dev_ca(folder.path(), &[]).unwrap();
        let says = |cert: &Path, key: &Path| {
            let tls = Tls { cert: Some(cert.into()), key: Some(key.into()), ..Tls::default() };
            configure(&tls).map(|found| found.is_some()).unwrap_err().to_string()
        };
        assert!(says(&made.key, &made.key).contains("holds no certificate"));
        assert!(says(&made.cert, &made.cert).contains("holds no private key"));
        assert!(says(&folder.path().join("none"), &made.key).contains("none"));
        assert!(says(&made.cert, &folder.path().join("ca-key.pem")).contains("cannot be used"), "another's key");
    }
}
