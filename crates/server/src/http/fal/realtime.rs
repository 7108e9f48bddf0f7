//! fal's web socket: one request after the other as `MessagePack` (or JSON as text), each answered with its output as
//! `MessagePack`. What waits is kept as it came and counted with bodies; a socket with much that waits is not read.

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
    guard::{Seat, Taken},
    http::{random_seed, respond, values},
    job::{Dialect, NewJob},
    server::Server,
};

/// The longest message, bytes: pictures come as data URIs. One that is on its way is not counted with bodies.
const LONGEST: usize = 16 << 20;

/// Bytes that wait above which a socket is not read.
const MUCH_WAITING: usize = 8 << 20;

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
    Answer(Asked),
    Refuse(Fault),
    End,
}

/// A message with content, as it came, and the room that it takes.
struct Asked {
    content: Message,
    _room: Taken,
}

/// Requests that wait.
#[derive(Default)]
struct Line(VecDeque<Next>);

impl Line {
    fn bytes(&self) -> usize {
        let bytes = |next: &Next| if let Next::Answer(asked) = next { asked.len() } else { 0 };
        self.0.iter().map(bytes).sum()
    }
}

impl Talk {
    /// The answer to whoever asks for a connection. It is a `GET`, and makes pictures: a key has to be good for that.
    pub(super) fn open(self, socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Response<Body> {
        if let Err(fault) = self.caller.may(Scope::Generate) {
            return refused(&fault);
        }
        let socket = match socket {
            Ok(socket) => socket.max_message_size(LONGEST).max_frame_size(LONGEST),
            Err(_) => return respond(&Answer::new(426, json!({"detail": "this path takes web sockets only"}))),
        };
        match self.server.room.sit(&self.caller.owner) {
            Ok(seat) => socket.on_upgrade(move |socket| self.serve(socket, seat)).into_response(),
            Err(fault) => refused(&fault),
        }
    }

    /// Answers until the client goes or is silent.
    async fn serve(self, mut socket: WebSocket, _seat: Seat) {
        let mut waiting = Line::default();
        loop {
            let next = if let Some(next) = waiting.0.pop_front() {
                next
            } else {
                let Ok(next) = tokio::time::timeout(IDLE, self.receive(&mut socket)).await else {
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
                Next::Refuse(fault) => told(&fault),
                Next::Answer(asked) => match self.answer(&mut socket, &mut waiting, asked).await {
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
    async fn answer(&self, socket: &mut WebSocket, waiting: &mut Line, asked: Asked) -> Option<Message> {
        let making = self.make(asked);
        tokio::pin!(making);
        loop {
            tokio::select! {
                made = &mut making => return Some(match made {
                    Ok(output) => Message::Binary(rmp_serde::to_vec_named(&output).unwrap_or_default().into()),
                    Err(fault) => told(&fault),
                }),
                next = self.receive(socket), if waiting.bytes() < MUCH_WAITING => match next {
                    Next::End => return None,
                    next => {
                        waiting.0.push_back(next);
                        while waiting.0.len() > self.waiting.clamp(1, MOST_WAITING) {
                            waiting.0.pop_front();
                        }
                    }
                },
            }
        }
    }

    /// One request. The key may have been revoked since the connection began, and each request counts against its limits.
    async fn make(&self, asked: Asked) -> Result<Value, Fault> {
        let caller = self.server.auth.still(&self.caller).ok_or(Fault::Unauthenticated)?;
        caller.may(Scope::Generate)?;
        let _admitted = self.server.auth.admit(&caller)?;
        let mut input = asked.read()?;
        let ask = fal::ask(&self.app, self.model.clone(), &input, random_seed(), KEEP_SECONDS)?;
        let new = NewJob {
            raw: fal::kept(&input),
            only_while_held: true,
            ..NewJob::new(Dialect::Fal, &caller.owner, &self.app.endpoint, Ok(ask))
        };
        let request = input.get_mut("request_id").map(Value::take);
        drop(input);
        let jobs = &self.server.jobs;
        let (job, _hold) = self.server.submit(&caller, new).await?;
        // The queue counts it now.
        drop(asked);
        let job = jobs.wait(&job.id).await?;
        if let Some(fault) = job.fault() {
            return Err(fault.clone());
        }
        let mut output = output_as(&self.server.blobs, &job, "", true).await?;
        if let Some(request) = request {
            output["request_id"] = request;
        }
        Ok(output)
    }

    /// The next message with content.
    async fn receive(&self, socket: &mut WebSocket) -> Next {
        loop {
            let content = match socket.recv().await {
                Some(Ok(content @ (Message::Binary(_) | Message::Text(_)))) => content,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Next::End,
            };
            let room = self.server.room.take(length(&content) as u64);
            return room.map_or_else(Next::Refuse, |room| Next::Answer(Asked { content, _room: room }));
        }
    }
}

impl Asked {
    fn len(&self) -> usize {
        length(&self.content)
    }

    fn read(&self) -> Result<Value, Fault> {
        let read = match &self.content {
            Message::Binary(bytes) => values::message_pack(bytes).map_err(|error| error.to_string()),
            other => values::json(other.to_text().unwrap_or_default().as_bytes()).map_err(|error| error.to_string()),
        };
        read.map_err(|why| Fault::invalid("message", Rule::Body, format!("is neither MessagePack nor JSON: {why}")))
    }
}

/// Bytes of a message.
fn length(message: &Message) -> usize {
    match message {
        Message::Binary(bytes) => bytes.len(),
        Message::Text(text) => text.len(),
        _ => 0,
    }
}

/// A fault in the socket's own shape.
fn told(fault: &Fault) -> Message {
    let kind = match fault {
        Fault::Invalid(_) | Fault::Picture { .. } | Fault::Flagged { .. } => "INVALID_REQUEST",
        Fault::Full { .. } => "TOO_MANY_REQUESTS",
        Fault::Unauthenticated | Fault::Forbidden(_) => "UNAUTHORIZED",
        _ => "INTERNAL_ERROR",
    };
    Message::Text(error(kind, &fault.to_string()).into())
}

fn error(kind: &str, reason: &str) -> String {
    json!({"type": "x-fal-error", "error": kind, "reason": reason}).to_string()
}
