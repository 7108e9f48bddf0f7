//! The sockets: plain HTTP, and TLS beside it if it is configured.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use axum::Router;
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use hyper_util::rt::TokioTimer;

use crate::{
    config::Config,
    guard::HEADER_TIME,
    tls::{self, TlsError},
};

/// Requests of one HTTP/2 connection at the same time.
const MOST_STREAMS: u32 = 250;

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address that cannot be had.
    #[error("{at}: {source}; hint: another address with --listen, as 127.0.0.1:8001")]
    Bind {
        /// Which.
        at: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Sockets that are bound and do not answer yet.
pub struct Listeners {
    plain: TcpListener,
    tls: Option<(TcpListener, RustlsConfig)>,
}

impl Listeners {
    /// Binds what is configured.
    ///
    /// # Errors
    /// [`ListenError`], for the operator.
    pub fn bind(config: &Config) -> Result<Self, ListenError> {
        let bind = |at: SocketAddr| {
            let listener = TcpListener::bind(at).map_err(|source| ListenError::Bind { at, source })?;
            listener.set_nonblocking(true).map_err(|source| ListenError::Bind { at, source })?;
            Ok::<_, ListenError>(listener)
        };
        let tls = match (config.tls.listen, tls::configure(&config.tls)?) {
            (Some(at), Some(tls)) => Some((bind(at)?, tls)),
            _ => None,
        };
        Ok(Self { plain: bind(config.listen)?, tls })
    }

    /// Where they are, as URLs: with the port that the system chose if 0 was asked for.
    pub fn urls(&self) -> Vec<String> {
        let url =
            |scheme: &str, listener: &TcpListener| listener.local_addr().ok().map(|at| format!("{scheme}://{at}"));
        let tls = self.tls.as_ref().and_then(|(listener, _)| url("https", listener));
        url("http", &self.plain).into_iter().chain(tls).collect()
    }

    /// Answers until `stop` ends; then no new connection is taken, and those that are there have `drain` to end.
    ///
    /// # Errors
    /// What the system says.
    pub async fn run(
        self,
        plain: Router,
        tls: Router,
        stop: impl Future<Output = ()> + Send + 'static,
        drain: Duration,
    ) -> io::Result<()> {
        let handle = Handle::new();
        let stopping = handle.clone();
        let stopper = tokio::spawn(async move {
            stop.await;
            stopping.graceful_shutdown(Some(drain));
        });
        let mut http = axum_server::from_tcp(self.plain)?.handle(handle.clone());
        bounded(http.http_builder());
        let http = http.serve(plain.into_make_service());
        let answered = if let Some((listener, config)) = self.tls {
            let acceptor = RustlsAcceptor::new(config).handshake_timeout(Duration::from_secs(10));
            let mut https = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
            bounded(https.http_builder());
            tokio::try_join!(http, https.serve(tls.into_make_service())).map(drop)
        } else {
            http.await
        };
        stopper.abort();
        answered
    }
}

/// A client that says nothing, or asks for everything at once, does not hold on to a connection.
fn bounded(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
}
