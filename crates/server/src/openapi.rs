//! The OpenAPI file and the table of parameters, made from the tables that read the bodies; kept in `docs/`, where tests compare
//! them with what the program would say.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::{
    dialect::{fal, native, openai, replicate, sdapi},
    fields::{Field, Kind, Treatment},
};

/// One operation.
struct Operation {
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    about: &'static str,
    body: Body,
}

/// What an operation takes.
enum Body {
    /// Nothing.
    None,
    /// A JSON object.
    Json(&'static [Field]),
    /// A JSON object with the fields inside `input`.
    Input(&'static [Field]),
    /// A form with files.
    Form(&'static [Field], &'static [&'static str]),
    /// Any bytes.
    Bytes,
    /// Any JSON object.
    Anything,
}

const fn operation(
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    about: &'static str,
    body: Body,
) -> Operation {
    Operation { method, path, tag, about, body }
}

const OPENAI: &str = "OpenAI";
const FAL: &str = "fal";
const REPLICATE: &str = "Replicate";
const SDAPI: &str = "AUTOMATIC1111";
const NATIVE: &str = "darkroom";

/// All routes, under their canonical paths; other mounts of the same are in `docs/serving.md`.
const OPERATIONS: &[Operation] = &[
    operation("post", "/v1/images/generations", OPENAI, "Pictures from a prompt", Body::Json(&openai::FIELDS)),
    operation(
        "post",
        "/v1/images/edits",
        OPENAI,
        "Pictures from a picture",
        Body::Form(&openai::FIELDS, &["image", "mask"]),
    ),
    operation(
        "post",
        "/v1/images/variations",
        OPENAI,
        "Variations of a picture",
        Body::Form(&openai::FIELDS, &["image"]),
    ),
    operation("get", "/v1/models", OPENAI, "Models, for OpenAI's and Replicate's clients", Body::None),
    operation("get", "/v1/models/{id}", OPENAI, "One model", Body::None),
    operation(
        "post",
        "/fal/run/fal-ai/flux/krea",
        FAL,
        "Pictures from a prompt, at once",
        Body::Json(&fal::TEXT_FIELDS),
    ),
    operation(
        "post",
        "/fal/run/fal-ai/flux/krea/image-to-image",
        FAL,
        "Pictures from a picture, at once",
        Body::Json(&fal::IMAGE_FIELDS),
    ),
    operation(
        "post",
        "/fal/run/fal-ai/flux/krea/redux",
        FAL,
        "Variations of a picture, at once",
        Body::Json(&fal::REDUX_FIELDS),
    ),
    operation(
        "post",
        "/fal/run/fal-ai/flux/krea/stream",
        FAL,
        "Pictures from a prompt, with previews as events",
        Body::Json(&fal::TEXT_FIELDS),
    ),
    operation(
        "post",
        "/fal/queue/fal-ai/flux/krea",
        FAL,
        "Pictures from a prompt, in the queue",
        Body::Json(&fal::TEXT_FIELDS),
    ),
    operation(
        "post",
        "/fal/queue/fal-ai/flux/krea/image-to-image",
        FAL,
        "Pictures from a picture, in the queue",
        Body::Json(&fal::IMAGE_FIELDS),
    ),
    operation(
        "post",
        "/fal/queue/fal-ai/flux/krea/redux",
        FAL,
        "Variations of a picture, in the queue",
        Body::Json(&fal::REDUX_FIELDS),
    ),
    operation("get", "/fal/queue/fal-ai/flux/requests/{id}", FAL, "The result", Body::None),
    operation("get", "/fal/queue/fal-ai/flux/requests/{id}/status", FAL, "Where it stands", Body::None),
    operation(
        "get",
        "/fal/queue/fal-ai/flux/requests/{id}/status/stream",
        FAL,
        "Where it stands, as events",
        Body::None,
    ),
    operation("put", "/fal/queue/fal-ai/flux/requests/{id}/cancel", FAL, "Stop it", Body::None),
    operation("post", "/fal/rest/storage/upload/initiate", FAL, "A place to put a file", Body::Anything),
    operation("post", "/fal/rest/storage/upload/initiate-multipart", FAL, "The same, for parts", Body::Anything),
    operation("put", "/fal/cdn/put/{token}/{id}/{name}", FAL, "The file, at the place that was given", Body::Bytes),
    operation("put", "/fal/cdn/put/{token}/{id}/{name}/{part}", FAL, "A part of it", Body::Bytes),
    operation("post", "/fal/cdn/put/{token}/{id}/{name}/complete", FAL, "All parts are there", Body::Anything),
    operation("post", "/fal/rest/storage/auth/token", FAL, "A token for the CDN", Body::Anything),
    operation("post", "/fal/cdn/files/upload", FAL, "A file", Body::Bytes),
    operation("post", "/fal/cdn/files/upload/multipart", FAL, "A place to put the parts of a file", Body::None),
    operation("put", "/files/{id}/{name}/multipart/{token}/{part}", FAL, "A part", Body::Bytes),
    operation("post", "/files/{id}/{name}/multipart/{token}/complete", FAL, "All parts are there", Body::Anything),
    operation("post", "/fal/rest/tokens", FAL, "A token for web sockets and streams", Body::Anything),
    operation("get", "/fal/run/fal-ai/flux/krea/realtime", FAL, "A web socket: a message for each picture", Body::None),
    operation("post", "/fal/proxy", FAL, "What `x-fal-target-url` names, for pages that use a proxy", Body::Anything),
    operation("get", "/fal/rest/.well-known/jwks.json", FAL, "The key that webhooks are signed with", Body::None),
    operation("get", "/.well-known/jwks.json", FAL, "The key that webhooks are signed with", Body::None),
    operation("post", "/v1/predictions", REPLICATE, "A prediction by version", Body::Input(&replicate::FIELDS)),
    operation(
        "post",
        "/v1/models/{owner}/{name}/predictions",
        REPLICATE,
        "A prediction by model",
        Body::Input(&replicate::FIELDS),
    ),
    operation(
        "post",
        "/v1/deployments/{owner}/{name}/predictions",
        REPLICATE,
        "A prediction by deployment",
        Body::Input(&replicate::FIELDS),
    ),
    operation("get", "/v1/predictions", REPLICATE, "Predictions, the newest first", Body::None),
    operation("get", "/v1/predictions/{id}", REPLICATE, "One prediction", Body::None),
    operation("post", "/v1/predictions/{id}/cancel", REPLICATE, "Stop it", Body::None),
    operation("get", "/v1/models/{owner}/{name}", REPLICATE, "A model", Body::None),
    operation("get", "/v1/models/{owner}/{name}/versions", REPLICATE, "Its versions", Body::None),
    operation("get", "/v1/models/{owner}/{name}/versions/{version}", REPLICATE, "One of them", Body::None),
    operation("get", "/v1/models/{owner}/{name}/readme", REPLICATE, "What it is, as Markdown", Body::None),
    operation("get", "/v1/models/{owner}/{name}/examples", REPLICATE, "There are none", Body::None),
    operation("get", "/v1/collections", REPLICATE, "There are none", Body::None),
    operation("get", "/v1/trainings", REPLICATE, "There are none", Body::None),
    operation("get", "/v1/deployments", REPLICATE, "Deployments: each model is one", Body::None),
    operation("get", "/v1/deployments/{owner}/{name}", REPLICATE, "A deployment", Body::None),
    operation("get", "/v1/search", REPLICATE, "Models by words of their names", Body::None),
    operation("post", "/v1/files", REPLICATE, "Keep a file", Body::Form(&[], &["content"])),
    operation("get", "/v1/files", REPLICATE, "Files", Body::None),
    operation("get", "/v1/files/{id}", REPLICATE, "One file", Body::None),
    operation("delete", "/v1/files/{id}", REPLICATE, "Forget a file", Body::None),
    operation("get", "/v1/account", REPLICATE, "Who asks", Body::None),
    operation("get", "/v1/hardware", REPLICATE, "What it runs on", Body::None),
    operation("get", "/v1/webhooks/default/secret", REPLICATE, "The secret that webhooks are signed with", Body::None),
    operation("post", "/sdapi/v1/txt2img", SDAPI, "Pictures from a prompt", Body::Json(&sdapi::FIELDS)),
    operation("post", "/sdapi/v1/img2img", SDAPI, "Pictures from a picture", Body::Json(&sdapi::FIELDS)),
    operation("get", "/sdapi/v1/progress", SDAPI, "How far it is", Body::None),
    operation("post", "/sdapi/v1/interrupt", SDAPI, "Stop it", Body::None),
    operation("post", "/sdapi/v1/skip", SDAPI, "The same", Body::None),
    operation("get", "/sdapi/v1/loras", SDAPI, "LoRAs of the operator's folder", Body::None),
    operation("get", "/sdapi/v1/{list}", SDAPI, "Other lists that front ends ask for, most of them empty", Body::None),
    operation("get", "/sdapi/v1/options", SDAPI, "Options", Body::None),
    operation("get", "/sdapi/v1/sd-models", SDAPI, "Models", Body::None),
    operation("get", "/sdapi/v1/samplers", SDAPI, "Samplers", Body::None),
    operation("get", "/sdapi/v1/schedulers", SDAPI, "Schedules", Body::None),
    operation("post", "/api/v1/jobs", NATIVE, "A job", Body::Json(&native::FIELDS)),
    operation("get", "/api/v1/jobs", NATIVE, "Jobs, the newest first", Body::None),
    operation("get", "/api/v1/jobs/{id}", NATIVE, "One job", Body::None),
    operation("delete", "/api/v1/jobs/{id}", NATIVE, "Stop it", Body::None),
    operation("post", "/api/v1/jobs/{id}/cancel", NATIVE, "The same", Body::None),
    operation("get", "/api/v1/jobs/{id}/events", NATIVE, "Its changes and previews, as events", Body::None),
    operation("get", "/api/v1/models", NATIVE, "Models and whether they are in memory", Body::None),
    operation(
        "get",
        "/files/{token}/{name}",
        NATIVE,
        "A picture or an upload, for whoever has its address",
        Body::None,
    ),
    operation("post", "/api/v1/admin/reload", NATIVE, "Read the configuration again", Body::None),
    operation(
        "post",
        "/api/v1/admin/models/{name}/load",
        NATIVE,
        "Have a model loaded before it is asked for",
        Body::None,
    ),
    operation("post", "/api/v1/admin/models/{name}/unload", NATIVE, "Have its memory back", Body::None),
    operation("get", "/api/v1/admin/held", NATIVE, "Flagged pictures that wait for a person", Body::None),
    operation("get", "/api/v1/admin/held/{id}", NATIVE, "One of them, to look at", Body::None),
    operation("post", "/api/v1/admin/held/{id}/release", NATIVE, "Let it pass", Body::None),
    operation("delete", "/api/v1/admin/held/{id}", NATIVE, "Delete it", Body::None),
    operation("get", "/healthz", NATIVE, "Whether the process is alive", Body::None),
    operation("get", "/readyz", NATIVE, "Whether it takes work", Body::None),
    operation("get", "/metrics", NATIVE, "Numbers for Prometheus", Body::None),
    operation("get", "/openapi.json", NATIVE, "This list for programs", Body::None),
    operation("get", "/docs", NATIVE, "This list as a page", Body::None),
];

/// The OpenAPI document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.document();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "darkroom",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "FLUX.1 Krea [dev] and the FLUX.1 family in the dialects of OpenAI, fal, Replicate and AUTOMATIC1111.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "security": [{"key": []}],
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer",
            "description": "Also as `Key …`, `Token …` or basic authentication; nothing where the server has no keys."}}},
        "paths": paths,
    })
}

impl Operation {
    fn document(&self) -> Value {
        let parameters: Vec<Value> = self
            .path
            .split(['{', '}'])
            .skip(1)
            .step_by(2)
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let mut document = json!({
            "tags": [self.tag],
            "summary": self.about,
            "operationId": format!("{}_{}", self.method, self.path.trim_matches('/').replace(['/', '{', '}', '-', '.'], "_")),
            "responses": {"default": {"description": "In the vendor's own shape."}},
        });
        if !parameters.is_empty() {
            document["parameters"] = json!(parameters);
        }
        if let Some((mime, schema)) = self.body.schema() {
            document["requestBody"] = json!({"required": true, "content": {mime: {"schema": schema}}});
        }
        document
    }
}

impl Body {
    fn schema(&self) -> Option<(&'static str, Value)> {
        Some(match self {
            Self::None => return None,
            Self::Json(fields) => ("application/json", object(fields)),
            Self::Input(fields) => {
                let properties = json!({"input": object(fields), "version": {"type": "string"}, "webhook": {"type": "string"},
                    "webhook_events_filter": {"type": "array", "items": {"enum": ["start", "output", "logs", "completed"]}}});
                ("application/json", json!({"type": "object", "properties": properties, "required": ["input"]}))
            }
            Self::Form(fields, files) => {
                let mut schema = object(fields);
                for file in *files {
                    schema["properties"][*file] = json!({"type": "string", "format": "binary"});
                }
                ("multipart/form-data", schema)
            }
            Self::Bytes => ("application/octet-stream", json!({"type": "string", "format": "binary"})),
            Self::Anything => ("application/json", json!({"type": "object"})),
        })
    }
}

fn object(fields: &[Field]) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|field| (field.name.to_owned(), schema(field))).collect();
    let required: Vec<&str> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut object = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn schema(field: &Field) -> Value {
    let mut schema = match field.kind {
        Kind::Text(longest) => json!({"type": "string", "maxLength": longest}),
        Kind::Integer(least, most) => {
            // JSON's numbers end before 2⁶⁴ in most readers; what is above is told in words.
            let bound = |value: i128| i64::try_from(value).ok();
            let mut schema = json!({"type": "integer"});
            for (name, value) in [("minimum", bound(least)), ("maximum", bound(most))] {
                if let Some(value) = value {
                    schema[name] = json!(value);
                }
            }
            schema
        }
        Kind::Number(least, most) => json!({"type": "number", "minimum": least, "maximum": most}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Choice(choices) => json!({"type": "string", "enum": choices}),
        Kind::Picture => json!({"type": "string", "format": "uri"}),
        Kind::Any => json!({}),
    };
    let about = about(field);
    if !about.is_empty() {
        schema["description"] = json!(about);
    }
    if let Ok(default) = serde_json::from_str::<Value>(field.default) {
        schema["default"] = default;
    }
    schema
}

/// What it is for, or why it has no effect.
fn about(field: &Field) -> String {
    match field.treatment {
        Treatment::Ignored(why) if field.about.is_empty() => format!("Accepted, without effect: {why}."),
        _ => field.about.to_owned(),
    }
}

/// All routes and parameters as a page.
pub fn page() -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>darkroom</title>\
         <style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}\
         code{font:0.9em ui-monospace,monospace}table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #8886;\
         padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top}summary{cursor:pointer}</style>\
         <h1>darkroom</h1><p>Every route of this server. The same for programs: <a href=\"/openapi.json\">openapi.json</a>.</p>",
    );
    for tag in [OPENAI, FAL, REPLICATE, SDAPI, NATIVE] {
        let _ = write!(page, "<h2>{tag}</h2>");
        for operation in OPERATIONS.iter().filter(|operation| operation.tag == tag) {
            let line = format!(
                "<code>{} {}</code> {}",
                operation.method.to_uppercase(),
                operation.path,
                escape(operation.about)
            );
            match operation.body {
                Body::Json(fields) | Body::Input(fields) | Body::Form(fields, _) if !fields.is_empty() => {
                    let _ = write!(
                        page,
                        "<details><summary>{line}</summary><table><tr><th>parameter<th>takes<th>default<th>"
                    );
                    for field in fields {
                        let default = if field.required { "required" } else { field.default };
                        let takes = takes(field.kind).replace('`', "");
                        let about = escape(&about(field));
                        let _ = write!(
                            page,
                            "<tr><td><code>{}</code><td>{}<td>{}<td>{about}",
                            field.name,
                            escape(&takes),
                            escape(default)
                        );
                    }
                    page.push_str("</table></details>");
                }
                _ => {
                    let _ = write!(page, "<p>{line}</p>");
                }
            }
        }
    }
    page.push_str("</html>\n");
    page
}

/// The table of parameters, in Markdown.
pub fn parameters() -> String {
    let tables: [(&str, &[Field]); 7] = [
        ("OpenAI: `/v1/images/generations`, `/edits`, `/variations`", &openai::FIELDS),
        ("fal: `fal-ai/flux/krea`", &fal::TEXT_FIELDS),
        ("fal: `fal-ai/flux/krea/image-to-image`", &fal::IMAGE_FIELDS),
        ("fal: `fal-ai/flux/krea/redux`", &fal::REDUX_FIELDS),
        ("Replicate: `black-forest-labs/flux-krea-dev`", &replicate::FIELDS),
        ("AUTOMATIC1111: `/sdapi/v1/txt2img`, `img2img`", &sdapi::FIELDS),
        ("darkroom: `/api/v1/jobs`", &native::FIELDS),
    ];
    let mut text = String::from(
        "# Parameters of every dialect\n\n\
         Made from the tables that read the bodies (`crates/server/src/dialect/`). What becomes of a parameter: *passthrough* means the same \
         here, *renamed* is a field of ours under their name, *converted* is translated, *emulated* is done around the model, *ignored* is \
         accepted without effect. Parameters that are not here are accepted and ignored. What is out of range is an error that names it.\n",
    );
    for (title, fields) in tables {
        let _ = write!(text, "\n## {title}\n\n| parameter | takes | default | here | |\n|---|---|---|---|---|\n");
        for field in fields {
            let names: Vec<String> =
                std::iter::once(&field.name).chain(field.aliases).map(|name| format!("`{name}`")).collect();
            let default = if field.required { "required".into() } else { field.default.replace('"', "") };
            let _ = writeln!(
                text,
                "| {} | {} | {default} | {} | {} |",
                names.join(", "),
                takes(field.kind),
                treatment(field.treatment),
                field.about.replace('|', "\\|")
            );
        }
    }
    text
}

fn takes(kind: Kind) -> String {
    match kind {
        Kind::Text(_) => "text".into(),
        Kind::Integer(least, most) if most > i128::from(u32::MAX) => format!("whole number from {}", least.max(-1)),
        Kind::Integer(least, most) => format!("{least} … {most}"),
        Kind::Number(least, most) => format!("{least} … {most}"),
        Kind::Flag => "true, false".into(),
        Kind::Choice(choices) => choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(" "),
        Kind::Picture => "picture".into(),
        Kind::Any => "any".into(),
    }
}

fn treatment(treatment: Treatment) -> String {
    match treatment {
        Treatment::Passthrough => "passthrough".into(),
        Treatment::Renamed(to) => format!("renamed: {to}"),
        Treatment::Converted(to) => format!("converted: {to}"),
        Treatment::Emulated(how) => format!("emulated: {how}"),
        Treatment::Ignored(why) => format!("ignored: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `DARKROOM_WRITE_DOCS=1` writes the file instead.
    fn same(file: &str, is: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file);
        if std::env::var_os("DARKROOM_WRITE_DOCS").is_some() {
            std::fs::write(&path, is).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == is, "docs/{file} is old; write it anew: DARKROOM_WRITE_DOCS=1 cargo test -p server openapi");
    }

    #[test]
    fn the_documents_in_the_tree_are_the_programs() {
        same("openapi.json", &format!("{:#}\n", document()));
        same("parameters.md", &parameters());
    }

    /// Every route of a router is here, but for second names and those that lead to several operations.
    #[test]
    fn no_route_is_left_out() {
        const ELSEWHERE: [&str; 5] =
            ["/fal/run/{*path}", "/fal/queue/{*path}", "/fal/rest/tokens/", "/health", "/files/{token}"];
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut folders = vec![here.join("http"), here.join("http/fal"), here.join("http/replicate")];
        let mut files = vec![here.join("app.rs"), here.join("files.rs")];
        while let Some(folder) = folders.pop() {
            let inside = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
            files.extend(inside.filter(|path| path.extension().is_some_and(|ending| ending == "rs")));
        }
        let mut routes = 0;
        for file in files {
            let source = std::fs::read_to_string(&file).unwrap();
            for route in source.split(".route(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')) {
                let path = route.split('"').next().unwrap();
                routes += 1;
                let known = OPERATIONS.iter().any(|operation| operation.path == path) || ELSEWHERE.contains(&path);
                assert!(known, "{path} of {} is not in the list of operations", file.display());
            }
        }
        assert!(routes > 60, "{routes} routes were found");
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let mut names: Vec<&str> = paths
            .values()
            .flat_map(|path| path.as_object().unwrap().values())
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), count), (count, OPERATIONS.len()));
    }
}
