//! What the server asks of others: pictures that requests name by an address, and webhooks that are told.
//!
//! Whoever may send a request could otherwise reach whatever this machine can: its own ports, the local network, a cloud's
//! metadata. So addresses are looked at after the name was resolved, and the connection goes to the very address that was looked
//! at ([`address`]); redirects are followed by hand and looked at again; sizes and times are bounded; nothing of ours is sent.
//! URLs of this server are read from the store instead, and `data:` URLs are decoded.

pub mod address;
pub use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use url::{Host, Url};

use self::address::Networks;
use crate::{
    blobs::{BlobId, Blobs, Draft, sniff},
    config::Config,
    data_uri::{self, is_data},
    error::{Fault, PictureFault},
    metrics::Metrics,
    owner::Owner,
};

/// Most redirects of a picture.
const MOST_REDIRECTS: usize = 3;

/// Longest address that is not a `data:` URL.
const LONGEST_URL: usize = 8192;

/// Names to addresses. The system's in earnest, others in tests.
pub trait Lookup: Send + Sync + 'static {
    /// All addresses of a name.
    fn lookup(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver.
pub struct System;

impl Lookup for System {
    fn lookup(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|at| at.ip()).collect()) })
    }
}

/// Asks others. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher(Arc<Inner>);

struct Inner {
    pictures: Outbound,
    webhooks: Outbound,
    blobs: Blobs,
    metrics: Metrics,
    most: u64,
    time: Duration,
}

struct Outbound {
    client: Client,
    networks: Arc<Networks>,
    /// What a URL has to begin with, in words.
    expected: &'static str,
}

/// Why a webhook was not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// It may not be told, and trying again changes nothing.
    #[error("{0}")]
    Refused(String),
    /// It could not be reached.
    #[error("{0}")]
    Failed(String),
}

impl Fetcher {
    /// As configured, with the system's resolver.
    ///
    /// # Errors
    /// [`Fault::Failed`] if no client can be made.
    pub fn new(config: &Config, blobs: Blobs, metrics: Metrics) -> Result<Self, Fault> {
        let system: Arc<dyn Lookup> = Arc::new(System);
        Self::with_lookup(config, blobs, metrics, &system)
    }

    /// The same with another resolver.
    ///
    /// # Errors
    /// As [`Fetcher::new`].
    pub fn with_lookup(
        config: &Config,
        blobs: Blobs,
        metrics: Metrics,
        lookup: &Arc<dyn Lookup>,
    ) -> Result<Self, Fault> {
        let outbound = |private: bool, expected| {
            let networks = Arc::new(Networks::new(private, &config.allowed_networks));
            Ok::<_, Fault>(Outbound { client: client(networks.clone(), lookup.clone())?, networks, expected })
        };
        Ok(Self(Arc::new(Inner {
            pictures: outbound(config.allow_private_fetches, "http://…, https://… or data:…")?,
            webhooks: outbound(config.allow_private_webhooks, "http://… or https://…")?,
            blobs,
            metrics,
            most: config.limits.fetch.0,
            time: config.limits.fetch_time,
        })))
    }

    /// The picture at a URL: of this server, of another, or `data:`. `field`: the vendor's name of it, for errors.
    ///
    /// # Errors
    /// [`Fault::Picture`] about `field`.
    pub async fn picture(&self, url: &str, field: &str) -> Result<Bytes, Fault> {
        if let Some(id) = self.own(url) {
            let (_, bytes) = self.0.blobs.get(&id).await?;
            return Ok(bytes);
        }
        let bytes = self.bytes(url, field).await;
        self.0.metrics.fetched(match &bytes {
            Ok(_) => "ok",
            Err(Fault::Picture { kind: PictureFault::Download, .. }) => "failed",
            Err(_) => "refused",
        });
        let bytes = bytes?;
        if sniff(&bytes).is_none() {
            let message = "what is there is no picture; expected PNG, JPEG, WebP or GIF";
            return Err(fault(field, PictureFault::Decode, message));
        }
        Ok(bytes)
    }

    /// The same, in the store for a job of `owner`.
    ///
    /// # Errors
    /// As [`Fetcher::picture`], and the store's.
    pub async fn given(&self, url: &str, field: &str, owner: &Owner) -> Result<Draft, Fault> {
        let bytes = self.picture(url, field).await?;
        let mime = sniff(&bytes).unwrap_or("application/octet-stream");
        self.0.blobs.give(bytes, mime, field, owner).await
    }

    /// The blob that a URL of this server names, whatever host the URL says: nobody guesses the name of a blob.
    pub fn own(&self, url: &str) -> Option<BlobId> {
        if url.len() > LONGEST_URL || is_data(url) {
            return None;
        }
        let url = Url::parse(url).ok()?;
        let mut steps = url.path_segments()?;
        steps.find(|step| *step == "files")?;
        let id: BlobId = steps.next()?.parse().ok()?;
        let blob = self.0.blobs.meta(&id)?;
        blob.purpose.is_public().then_some(id)
    }

    async fn bytes(&self, url: &str, field: &str) -> Result<Bytes, Fault> {
        if is_data(url) {
            return data_uri::decode(url, self.0.most).map_err(|wrong| match wrong {
                data_uri::Wrong::TooLarge => self.too_large(field),
                data_uri::Wrong::Malformed(message) => fault(field, PictureFault::Decode, message),
            });
        }
        let all = self.download(url, field);
        tokio::time::timeout(self.0.time, all).await.unwrap_or_else(|_| {
            let message = format!("did not come within {} s", self.0.time.as_secs());
            Err(fault(field, PictureFault::Download, &message))
        })
    }

    async fn download(&self, url: &str, field: &str) -> Result<Bytes, Fault> {
        let refused = |message: String| fault(field, PictureFault::Download, &message);
        let mut at = self.0.pictures.may_ask(url).map_err(refused)?;
        for _ in 0..=MOST_REDIRECTS {
            let asked = self.0.pictures.client.get(at.clone()).header(header::ACCEPT, "image/*").send().await;
            let mut answer = asked.map_err(|error| refused(said(&error)))?;
            let status = answer.status();
            if status.is_redirection() {
                let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| at.join(to).ok());
                let to = to.ok_or_else(|| refused("was redirected without a Location".into()))?;
                at = self.0.pictures.may_ask(to.as_str()).map_err(refused)?;
                continue;
            }
            if !status.is_success() {
                return Err(refused(format!("the server there answered {}", status.as_u16())));
            }
            if answer.content_length().is_some_and(|length| length > self.0.most) {
                return Err(self.too_large(field));
            }
            let mut bytes = BytesMut::new();
            while let Some(piece) = answer.chunk().await.map_err(|error| refused(said(&error)))? {
                if (bytes.len() + piece.len()) as u64 > self.0.most {
                    return Err(self.too_large(field));
                }
                bytes.extend_from_slice(&piece);
            }
            return Ok(bytes.freeze());
        }
        Err(refused(format!("it was moved more than {MOST_REDIRECTS} times")))
    }

    fn too_large(&self, field: &str) -> Fault {
        let message = format!("is larger than {} MiB", self.0.most >> 20);
        fault(field, PictureFault::TooLarge, &message)
    }

    /// Whether a webhook could be told at all; its name is resolved when it is.
    ///
    /// # Errors
    /// A sentence.
    pub fn may_tell(&self, url: &str) -> Result<(), String> {
        self.0.webhooks.may_ask(url).map(drop)
    }

    /// Tells a webhook, once; redirects are not followed. Gives the status of the answer, whose body is not read.
    ///
    /// # Errors
    /// [`Unsent`].
    pub async fn tell(&self, url: &str, headers: HeaderMap, body: Bytes, within: Duration) -> Result<u16, Unsent> {
        let at = self.0.webhooks.may_ask(url).map_err(Unsent::Refused)?;
        let sent = self.0.webhooks.client.post(at).headers(headers).body(body).timeout(within).send().await;
        let told = sent.map(|answer| answer.status().as_u16()).map_err(|error| {
            if is_private(&error) { Unsent::Refused(said(&error)) } else { Unsent::Failed(said(&error)) }
        });
        self.0.metrics.webhook(match &told {
            Ok(200..300) => "ok",
            Err(Unsent::Refused(_)) => "refused",
            _ => "failed",
        });
        told
    }
}

impl Outbound {
    /// What can be said of a URL before its name is resolved. Addresses in numbers never reach the resolver: they are looked at
    /// here, after `url` has read all their spellings (decimal, octal, hexadecimal, short, IPv4 in IPv6).
    fn may_ask(&self, url: &str) -> Result<Url, String> {
        if url.len() > LONGEST_URL {
            return Err(format!("is longer than {LONGEST_URL} characters"));
        }
        let wrong = || format!("is not a valid URL; expected {}", self.expected);
        let url = Url::parse(url.trim()).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a name or password in it, which is not sent to others".into());
        }
        let ip = match url.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            Some(Host::Domain(_)) => None,
            None => return Err("names no host".into()),
        };
        if ip.is_some_and(|ip| !self.networks.allow(ip)) {
            return Err(PRIVATE.into());
        }
        match url.port() {
            Some(port) if port < 1024 && !matches!(port, 80 | 443) => {
                Err("names a port below 1024 that is not 80 or 443, which is not allowed".into())
            }
            _ => Ok(url),
        }
    }
}

/// The same sentence for an address in numbers and for one that a name led to.
const PRIVATE: &str = "leads to a private network, which is not allowed";

/// A name led to private addresses alone.
#[derive(Debug, thiserror::Error)]
#[error("{PRIVATE}")]
struct Private;

fn is_private(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<Private>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Nothing of the inside of a network: a closed port and a silent one sound the same.
fn said(error: &reqwest::Error) -> String {
    if is_private(error) {
        PRIVATE.into()
    } else if error.is_timeout() {
        "the server there did not answer in time".into()
    } else {
        "the server there could not be reached".into()
    }
}

/// Resolves names and keeps the addresses that may be asked; the connection goes to one of those.
struct Pinned {
    networks: Arc<Networks>,
    lookup: Arc<dyn Lookup>,
}

impl Resolve for Pinned {
    fn resolve(&self, name: Name) -> Resolving {
        let (networks, found) = (self.networks.clone(), self.lookup.lookup(name.as_str().to_owned()));
        Box::pin(async move {
            let mut found = found.await?;
            found.retain(|ip| networks.allow(*ip));
            if found.is_empty() {
                return Err(Private.into());
            }
            Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

fn client(networks: Arc<Networks>, lookup: Arc<dyn Lookup>) -> Result<Client, Fault> {
    // Of the process; another module may have been first, with the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pinned = Arc::new(Pinned { networks, lookup });
    let builder = || {
        Client::builder()
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself, and nobody would look at the addresses.
            .no_proxy()
            .dns_resolver(pinned.clone())
            .referer(false)
            .connect_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(0)
            .user_agent(concat!("darkroom/", env!("CARGO_PKG_VERSION")))
    };
    builder().build().or_else(|error| {
        tracing::warn!(%error, "no trusted certificates were found on this machine: https will not be asked");
        let none = builder().tls_certs_only([]).build();
        none.map_err(|_| Fault::Failed("no client for HTTP could be made".into()))
    })
}

fn fault(field: &str, kind: PictureFault, message: &str) -> Fault {
    Fault::Picture { field: field.to_owned(), kind, message: message.to_owned() }
}

#[cfg(test)]
mod tests;
