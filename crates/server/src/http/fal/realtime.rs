//! fal's web socket: one request after the other as `MessagePack` (or JSON as text), each answered with its output as
//! `MessagePack`.

use std::{collections::VecDeque, time::Duration};

use axum::{
    body::Body,
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code, rejection::WebSocketUpgradeRejection},
    http::Response,
    response::IntoResponse,
};
use serde_json::{Value, json};

use super::{output_as, refused};
use crate::{
    auth::{Caller, Scope},
    dialect::{
        Answer,
        fal::{self, App},
    },
    error::{Fault, Rule},
    http::{random_seed, respond},
    job::{Dialect, NewJob},
    server::Server,
};

/// The longest message, bytes: pictures come as data URIs.
const LONGEST: usize = 64 << 20;

/// Requests that wait where the client says nothing about it.
pub(super) const USUALLY_WAITING: usize = 16;

/// Most requests that a client may let wait.
const MOST_WAITING: usize = 60;

/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_mins(1);

/// Seconds that pictures are kept: they are in the answer.
const KEEP_SECONDS: u64 = 3600;

/// One connection.
pub(super) struct Talk {
    pub(super) server: Server,
    pub(super) caller: Caller,
    pub(super) app: App,
    pub(super) model: String,
    /// Requests that may wait; the oldest are dropped for newer ones.
    pub(super) waiting: usize,
}

/// What to do next.
enum Next {
    Answer(Value),
    Wrong(String),
    End,
}

impl Talk {
    /// The answer to whoever asks for a connection. It is a `GET`, and makes pictures: a key has to be good for that.
    pub(super) fn open(self, socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Response<Body> {
        if let Err(fault) = self.caller.may(Scope::Generate) {
            return refused(&fault);
        }
        match socket {
            Ok(socket) => socket.max_message_size(LONGEST).on_upgrade(move |socket| self.serve(socket)).into_response(),
            Err(_) => respond(&Answer::new(426, json!({"detail": "this path takes web sockets only"}))),
        }
    }

    /// Answers until the client goes or is silent.
    async fn serve(self, mut socket: WebSocket) {
        let mut waiting = VecDeque::new();
        loop {
            let next = if let Some(next) = waiting.pop_front() {
                next
            } else {
                let Ok(next) = tokio::time::timeout(IDLE, receive(&mut socket)).await else {
                    let told = error("TIMEOUT", "no request came for a while");
                    let _ = socket.send(Message::Text(told.into())).await;
                    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                    let _ = socket.send(Message::Close(Some(frame))).await;
                    return;
                };
                next
            };
            let reply = match next {
                Next::End => return,
                Next::Wrong(why) => Message::Text(error("INVALID_REQUEST", &why).into()),
                Next::Answer(input) => match self.answer(&mut socket, &mut waiting, &input).await {
                    Some(reply) => reply,
                    None => return, // gone; the job goes with its hold
                },
            };
            if socket.send(reply).await.is_err() {
                return;
            }
            if self.server.auth.still(&self.caller).is_none() {
                let frame = CloseFrame { code: close_code::POLICY, reason: "the key was revoked".into() };
                let _ = socket.send(Message::Close(Some(frame))).await;
                return;
            }
        }
    }

    /// Makes what is asked, while further requests may come in. `None`: the client is gone.
    async fn answer(&self, socket: &mut WebSocket, waiting: &mut VecDeque<Next>, input: &Value) -> Option<Message> {
        let making = self.make(input);
        tokio::pin!(making);
        loop {
            tokio::select! {
                made = &mut making => return Some(match made {
                    Ok(output) => Message::Binary(rmp_serde::to_vec_named(&output).unwrap_or_default().into()),
                    Err(fault @ (Fault::Invalid(_) | Fault::Picture { .. } | Fault::Flagged { .. })) => {
                        Message::Text(error("INVALID_REQUEST", &fault.to_string()).into())
                    }
                    Err(fault @ Fault::Full { .. }) => {
                        Message::Text(error("TOO_MANY_REQUESTS", &fault.to_string()).into())
                    }
                    Err(fault @ (Fault::Unauthenticated | Fault::Forbidden(_))) => {
                        Message::Text(error("UNAUTHORIZED", &fault.to_string()).into())
                    }
                    Err(fault) => Message::Text(error("INTERNAL_ERROR", &fault.to_string()).into()),
                }),
                next = receive(socket) => match next {
                    Next::End => return None,
                    next => {
                        waiting.push_back(next);
                        while waiting.len() > self.waiting.clamp(1, MOST_WAITING) {
                            waiting.pop_front();
                        }
                    }
                },
            }
        }
    }

    /// One request. The key may have been revoked since the connection began, and each request counts against its limits.
    async fn make(&self, input: &Value) -> Result<Value, Fault> {
        let caller = self.server.auth.still(&self.caller).ok_or(Fault::Unauthenticated)?;
        caller.may(Scope::Generate)?;
        let _admitted = self.server.auth.admit(&caller)?;
        let ask = fal::ask(&self.app, self.model.clone(), input, random_seed(), KEEP_SECONDS)?;
        let new = NewJob {
            raw: fal::kept(input),
            only_while_held: true,
            ..NewJob::new(Dialect::Fal, &caller.owner, &self.app.endpoint, Ok(ask))
        };
        let jobs = &self.server.jobs;
        let job = self.server.submit(&caller, new).await?;
        let _hold = jobs.hold(&job.id);
        let gone = || Fault::Failed("the job is not known any more".into());
        let job = jobs.wait(&job.id).await.ok_or_else(gone)?;
        if let Some(fault) = job.fault() {
            return Err(fault.clone());
        }
        let mut output = output_as(&self.server.blobs, &job, "", true).await?;
        if let Some(request) = input.get("request_id") {
            output["request_id"] = request.clone();
        }
        Ok(output)
    }
}

/// The next message with content.
async fn receive(socket: &mut WebSocket) -> Next {
    loop {
        let read = match socket.recv().await {
            Some(Ok(Message::Binary(bytes))) => rmp_serde::from_slice(&bytes).map_err(|error| error.to_string()),
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).map_err(|error| error.to_string()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Next::End,
        };
        return match read {
            Ok(input) => Next::Answer(input),
            Err(why) => {
                let fault = Fault::invalid("message", Rule::Body, format!("is neither MessagePack nor JSON: {why}"));
                Next::Wrong(fault.to_string())
            }
        };
    }
}

fn error(kind: &str, reason: &str) -> String {
    json!({"type": "x-fal-error", "error": kind, "reason": reason}).to_string()
}
