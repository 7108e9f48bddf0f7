//! Bodies of forms: `multipart/form-data` with values and files in any order.

use axum::{
    body::Body,
    extract::{FromRequest, Multipart},
    http::Request,
};
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::{Fault, Rule};

/// Most parts of a form.
const MOST_PARTS: usize = 100;

/// Longest value, bytes; files may be longer.
const LONGEST_VALUE: usize = 1 << 20;

/// A part of this name is a file, whatever is in it: Replicate's uploads.
const ALWAYS_FILE: &str = "content";

/// A file of a form.
#[derive(Clone, Debug)]
pub struct File {
    /// The part's name: `image`, `image[]`, `mask` …
    pub name: String,
    /// What the caller called it.
    pub called: Option<String>,
    /// What the caller says it is; often wrong.
    pub mime: Option<String>,
    /// The content.
    pub bytes: Bytes,
}

/// A form that was read to its end.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// Values as strings; of two with one name the last.
    pub values: Map<String, Value>,
    /// Files in their order.
    pub files: Vec<File>,
}

impl Form {
    /// Reads all of it: clients send files before the values that say what they are for. The body's length is limited by the
    /// server's guard.
    ///
    /// # Errors
    /// [`Fault::Invalid`] about `body`, [`Fault::TooLarge`].
    pub async fn read(request: Request<Body>) -> Result<Self, Fault> {
        let wrong = |message: String| Fault::invalid("body", Rule::Body, message);
        let mut parts = Multipart::from_request(request, &())
            .await
            .map_err(|_| wrong("has to be multipart/form-data with a boundary".into()))?;
        let broken = |error: axum::extract::multipart::MultipartError| match error.status().as_u16() {
            413 => Fault::TooLarge("the form is larger than this server takes".into()),
            _ => wrong(format!("is not a whole form: {}", error.body_text())),
        };
        let mut form = Self::default();
        let mut count = 0;
        while let Some(part) = parts.next_field().await.map_err(broken)? {
            count += 1;
            if count > MOST_PARTS {
                return Err(wrong(format!("has more than {MOST_PARTS} parts")));
            }
            let name = part.name().unwrap_or_default().to_owned();
            let called = part.file_name().map(str::to_owned);
            let mime = part.content_type().map(str::to_owned);
            let bytes = part.bytes().await.map_err(broken)?;
            let is_typed = mime.as_deref().is_some_and(|mime| !mime.starts_with("text/"));
            if called.is_some() || is_typed || name == ALWAYS_FILE {
                form.files.push(File { name, called, mime, bytes });
                continue;
            }
            if bytes.len() > LONGEST_VALUE && !holds_file(&name) {
                return Err(wrong(format!("holds a value of more than {LONGEST_VALUE} bytes")));
            }
            match String::from_utf8(bytes.into()) {
                Ok(text) => {
                    form.values.insert(name, Value::String(text));
                }
                // Python's clients send bytes that nobody named without a name and a type.
                Err(bytes) if holds_file(&name) => {
                    form.files.push(File { name, called, mime, bytes: bytes.into_bytes().into() });
                }
                Err(_) => return Err(wrong(format!("holds '{name}', which is not UTF-8"))),
            }
        }
        Ok(form)
    }

    /// Files under a name, also as `name[]` and `name[0]`.
    pub fn files<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a File> + 'a {
        self.files.iter().filter(move |file| {
            file.name
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || (rest.starts_with('[') && rest.ends_with(']')))
        })
    }
}

/// Whether a part of this name is a file if it is no text.
fn holds_file(name: &str) -> bool {
    matches!(name.split('[').next(), Some("image" | "mask"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(content_type: &str, body: &'static [u8]) -> Result<Form, Fault> {
        let request = Request::builder().header("content-type", content_type).body(Body::from(body)).unwrap();
        Form::read(request).await
    }

    #[tokio::test]
    async fn files_come_before_values() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"image[]\"; filename=\"a.png\"\r\nContent-Type: application/octet-stream\r\n\r\nPNG\r\n\
            --x\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na fox\r\n--x--\r\n";
        let form = read("multipart/form-data; boundary=x", body).await.unwrap();
        assert_eq!(form.values["prompt"], "a fox");
        let files: Vec<_> = form.files("image").collect();
        assert_eq!((files.len(), &files[0].bytes[..], files[0].called.as_deref()), (1, &b"PNG"[..], Some("a.png")));
        assert_eq!((form.files("imag").count(), files[0].mime.as_deref()), (0, Some("application/octet-stream")));
    }

    #[tokio::test]
    async fn bytes_without_a_name_are_a_file() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"image[]\"\r\n\r\n\x89PNG\r\n\
            --x\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\nhttps://a/b.png\r\n--x--\r\n";
        let form = read("multipart/form-data; boundary=x", body).await.unwrap();
        assert_eq!(form.files("image").next().unwrap().bytes[..], b"\x89PNG"[..]);
        assert_eq!(form.values["image"], "https://a/b.png");
    }

    #[tokio::test]
    async fn text_without_a_name_may_be_a_file() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\na,b\r\n\
            --x\r\nContent-Disposition: form-data; name=\"type\"\r\n\r\ntext/csv\r\n--x--\r\n";
        let form = read("multipart/form-data; boundary=x", body).await.unwrap();
        assert_eq!(form.files("content").next().unwrap().bytes[..], b"a,b"[..]);
        assert_eq!(form.values.into_iter().collect::<Vec<_>>(), [("type".to_owned(), "text/csv".into())]);
    }

    #[tokio::test]
    async fn a_broken_form_is_refused() {
        for (content_type, body) in [
            ("application/json", &b"{}"[..]),
            ("multipart/form-data", b"--x--"),
            ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nnever ends"),
            ("multipart/form-data; boundary=x", b"nothing of a form"),
            (
                "multipart/form-data; boundary=x",
                b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\xff\xfe\r\n--x--\r\n",
            ),
        ] {
            assert!(matches!(read(content_type, body).await, Err(Fault::Invalid(_))), "{content_type}");
        }
    }
}
