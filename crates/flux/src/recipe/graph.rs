//! A ComfyUI workflow's nodes and links, from either of its two formats.
//!
//! The *API* format is an object of nodes by id: `{"3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}}}`. The *UI* format
//! is what the editor saves: nodes with slots, links by number, widget values by position, and nodes that stand for nothing of
//! their own: reroutes, primitives, bypassed and muted ones, subgraphs. Here all that is resolved: what is left is the API
//! format's graph. Files may be hostile: depth, nodes and steps are limited, and nothing panics.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::nodes;
use crate::error::{Error, Result};

/// Most nodes, those of subgraphs counted as often as they are used.
const MOST_NODES: usize = 10_000;

/// Deepest nesting of subgraphs.
const DEEPEST: usize = 16;

/// Longest way through reroutes and the like from a slot to the node that fills it.
const LONGEST: usize = 1000;

/// Modes of a node in the editor.
const MUTED: i64 = 2;
const BYPASSED: i64 = 4;

/// Where a subgraph's inputs come from and its outputs go to.
const INPUT_NODE: &str = "-10";
const OUTPUT_NODE: &str = "-20";

/// Nodes by id.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: BTreeMap<String, Node>,
}

/// A node that does something.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) class: String,
    pub(super) inputs: BTreeMap<String, Input>,
}

/// What a node is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Value(Value),
    /// Another node's output.
    Link(String, usize),
}

pub(super) fn wrong(problem: impl Into<String>) -> Error {
    Error::asked("workflow", problem)
}

impl Graph {
    /// Reads either format.
    pub(super) fn parse(json: &str) -> Result<Self> {
        let parse = |json: &str| serde_json::from_str::<Value>(json);
        // Python writes numbers that are none, which JSON does not have.
        let value = parse(json)
            .or_else(|_| parse(&json.replace(": NaN", ": null").replace("[NaN", "[null").replace(", NaN", ", null")))
            .map_err(|e| wrong(format!("is not JSON: {e}")))?;
        let Value::Object(root) = value else { return Err(wrong("is not a JSON object of nodes")) };
        if let Some(Value::Array(nodes)) = root.get("nodes") {
            return Editor::new(&root, nodes)?.graph();
        }
        match root.get("prompt") {
            // As it is sent to ComfyUI's server.
            Some(Value::Object(nodes)) if !nodes.contains_key("class_type") => Self::of_api(nodes),
            _ => Self::of_api(&root),
        }
    }

    fn of_api(root: &Map<String, Value>) -> Result<Self> {
        let mut graph = Self::default();
        for (id, node) in root {
            let Some(class) = node.get("class_type").and_then(Value::as_str) else {
                let formats = "neither ComfyUI's UI format ('nodes' and 'links') nor its API format ('class_type')";
                return Err(wrong(format!("is {formats}: see '{}'", shortened(id))));
            };
            let inputs = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
            let inputs = inputs.map(|(name, value)| (name.clone(), api_input(value))).collect();
            graph.nodes.insert(id.clone(), Node { class: class.to_owned(), inputs });
        }
        match graph.nodes.len() {
            0 => Err(wrong("has no nodes")),
            count if count > MOST_NODES => Err(wrong(format!("has {count} nodes; at most {MOST_NODES} are read"))),
            _ => Ok(graph),
        }
    }
}

fn api_input(value: &Value) -> Input {
    if let Value::Array(pair) = value
        && let [Value::String(node), slot] = &pair[..]
        && let Some(slot) = slot.as_u64()
    {
        return Input::Link(node.clone(), slot as usize);
    }
    Input::Value(value.clone())
}

/// For a message: a name that a file chose.
pub(super) fn shortened(name: &str) -> String {
    let short: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    if short.len() < name.len() { format!("{short}…") } else { short }
}

/// An id, which may be a number or text.
fn id_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Where a link begins: node and slot.
type Origin = (String, usize);

/// The nodes of one level: of the workflow itself, or of one use of a subgraph.
struct Scope<'a> {
    /// Before the ids of its nodes.
    prefix: String,
    nodes: BTreeMap<String, &'a Value>,
    links: BTreeMap<String, Origin>,
    /// Link that fills each output of a subgraph.
    outputs: BTreeMap<usize, String>,
    /// Where it is used: the scope, and the node that stands for it.
    user: Option<(usize, &'a Value)>,
    /// Scopes of the subgraphs used in it, by node.
    inner: BTreeMap<String, usize>,
}

/// What fills a slot.
enum Source {
    Node(String, usize),
    Value(Value),
}

struct Editor<'a> {
    subgraphs: BTreeMap<&'a str, &'a Value>,
    scopes: Vec<Scope<'a>>,
    count: usize,
}

impl<'a> Editor<'a> {
    fn new(root: &'a Map<String, Value>, nodes: &'a [Value]) -> Result<Self> {
        let definitions = root.get("definitions").and_then(|d| d.get("subgraphs")).and_then(Value::as_array);
        let subgraphs = definitions.into_iter().flatten();
        let subgraphs = subgraphs.filter_map(|graph| Some((graph.get("id")?.as_str()?, graph))).collect();
        let mut editor = Self { subgraphs, scopes: Vec::new(), count: 0 };
        editor.add_scope(String::new(), nodes, root.get("links"), None, 0)?;
        Ok(editor)
    }

    fn add_scope(
        &mut self,
        prefix: String,
        nodes: &'a [Value],
        links: Option<&'a Value>,
        user: Option<(usize, &'a Value)>,
        depth: usize,
    ) -> Result<usize> {
        self.count += nodes.len();
        if self.count > MOST_NODES {
            return Err(wrong(format!("has more than {MOST_NODES} nodes, its subgraphs included")));
        }
        if depth > DEEPEST {
            return Err(wrong(format!("has subgraphs within subgraphs, more than {DEEPEST} deep")));
        }
        let mut scope = Scope {
            prefix,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            outputs: BTreeMap::new(),
            user,
            inner: BTreeMap::new(),
        };
        for node in nodes {
            let id = node.get("id").and_then(id_of).ok_or_else(|| wrong("has a node without an id"))?;
            scope.nodes.insert(id, node);
        }
        for link in links.and_then(Value::as_array).into_iter().flatten() {
            let at = |index: usize, name: &str| link.get(index).or_else(|| link.get(name));
            let (Some(id), Some(origin), Some(slot)) = (
                at(0, "id").and_then(id_of),
                at(1, "origin_id").and_then(id_of),
                at(2, "origin_slot").and_then(Value::as_u64),
            ) else {
                return Err(wrong("has a link that does not say where it comes from"));
            };
            if at(3, "target_id").and_then(id_of).as_deref() == Some(OUTPUT_NODE)
                && let Some(output) = at(4, "target_slot").and_then(Value::as_u64)
            {
                scope.outputs.insert(output as usize, id.clone());
            }
            scope.links.insert(id, (origin, slot as usize));
        }
        let index = self.scopes.len();
        self.scopes.push(scope);
        for node in nodes {
            let Some(graph) = self.subgraphs.get(class_of(node)).copied() else { continue };
            let id = node.get("id").and_then(id_of).unwrap_or_default();
            let prefix = format!("{}{id}:", self.scopes[index].prefix);
            let nodes = graph.get("nodes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let inner = self.add_scope(prefix, nodes, graph.get("links"), Some((index, node)), depth + 1)?;
            self.scopes[index].inner.insert(id, inner);
        }
        Ok(index)
    }

    /// All nodes that do something, with everything between them resolved.
    fn graph(&self) -> Result<Graph> {
        let mut graph = Graph::default();
        for (index, scope) in self.scopes.iter().enumerate() {
            if !self.is_used(index) {
                continue;
            }
            for (id, node) in &scope.nodes {
                let class = class_of(node);
                if is_off(node) || nodes::stands_for_nothing(class) || self.subgraphs.contains_key(class) {
                    continue;
                }
                let inputs = self.inputs(index, id, node)?;
                graph.nodes.insert(format!("{}{id}", scope.prefix), Node { class: class.to_owned(), inputs });
            }
        }
        if graph.nodes.is_empty() {
            return Err(wrong("has no nodes that are switched on"));
        }
        Ok(graph)
    }

    /// Whether no node that stands for the subgraph is muted or bypassed.
    fn is_used(&self, mut scope: usize) -> bool {
        while let Some((outer, node)) = self.scopes[scope].user {
            if is_off(node) {
                return false;
            }
            scope = outer;
        }
        true
    }

    fn inputs(&self, scope: usize, id: &str, node: &Value) -> Result<BTreeMap<String, Input>> {
        let mut inputs = BTreeMap::new();
        match node.get("widgets_values") {
            Some(Value::Array(values)) => {
                let names = nodes::widgets(class_of(node));
                for (name, value) in names.iter().zip(values) {
                    inputs.insert((*name).to_owned(), Input::Value(value.clone()));
                }
            }
            Some(Value::Object(values)) => {
                inputs.extend(values.iter().map(|(name, value)| (name.clone(), Input::Value(value.clone()))));
            }
            _ => {}
        }
        // What the subgraph's user set from outside.
        if let Some((_, user)) = self.scopes[scope].user {
            for (of, name, value) in promoted(user) {
                if of == id {
                    inputs.insert(name.to_owned(), Input::Value(value.clone()));
                }
            }
        }
        for input in slots(node, "inputs") {
            let (Some(name), Some(link)) = (input.get("name").and_then(Value::as_str), link_of(input)) else {
                continue;
            };
            match self.resolve(scope, &link)? {
                Some(Source::Node(node, slot)) => inputs.insert(name.to_owned(), Input::Link(node, slot)),
                Some(Source::Value(value)) => inputs.insert(name.to_owned(), Input::Value(value)),
                None => None,
            };
        }
        Ok(inputs)
    }

    /// What is at the other end of a link; `None` if nothing is.
    fn resolve(&self, scope: usize, link: &str) -> Result<Option<Source>> {
        let (mut scope, mut link) = (scope, link.to_owned());
        for _ in 0..LONGEST {
            let here = &self.scopes[scope];
            let Some((origin, slot)) = here.links.get(&link) else { return Ok(None) };
            if origin == INPUT_NODE {
                // From the subgraph to where it is used.
                let Some((outer, user)) = here.user else { return Ok(None) };
                let Some(input) = slots(user, "inputs").nth(*slot) else { return Ok(None) };
                match link_of(input) {
                    Some(outside) => (scope, link) = (outer, outside),
                    None => return Ok(own_widget(user, input).map(Source::Value)),
                }
                continue;
            }
            let Some(node) = here.nodes.get(origin) else { return Ok(None) };
            let class = class_of(node);
            let mode = node.get("mode").and_then(Value::as_i64).unwrap_or(0);
            let next = match class {
                _ if mode == MUTED => None,
                _ if mode == BYPASSED => passed_on(node, *slot),
                "Reroute" => slots(node, "inputs").next().and_then(link_of),
                "PrimitiveNode" => {
                    let value = node.get("widgets_values").and_then(|values| values.get(0));
                    return Ok(value.cloned().map(Source::Value));
                }
                "GetNode" => {
                    let name = node.get("widgets_values").and_then(|values| values.get(0));
                    let set = here.nodes.values().find(|node| {
                        class_of(node) == "SetNode"
                            && node.get("widgets_values").and_then(|values| values.get(0)) == name
                    });
                    set.and_then(|set| slots(set, "inputs").next()).and_then(link_of)
                }
                _ => match here.inner.get(origin) {
                    Some(&inner) => {
                        let output = self.scopes[inner].outputs.get(slot).cloned();
                        scope = inner;
                        output
                    }
                    None => return Ok(Some(Source::Node(format!("{}{origin}", here.prefix), *slot))),
                },
            };
            match next {
                Some(next) => link = next,
                None => return Ok(None),
            }
        }
        Err(wrong("has links that go round in circles"))
    }
}

fn class_of(node: &Value) -> &str {
    node.get("type").and_then(Value::as_str).unwrap_or("")
}

fn is_off(node: &Value) -> bool {
    matches!(node.get("mode").and_then(Value::as_i64), Some(MUTED | BYPASSED))
}

fn slots<'v>(node: &'v Value, which: &str) -> impl Iterator<Item = &'v Value> {
    node.get(which).and_then(Value::as_array).into_iter().flatten()
}

fn link_of(input: &Value) -> Option<String> {
    input.get("link").and_then(id_of)
}

/// A bypassed node hands on the first input of its output's type, the one at the same place before others.
fn passed_on(node: &Value, slot: usize) -> Option<String> {
    let kind = |slot: &Value| slot.get("type").cloned();
    let output = slots(node, "outputs").nth(slot).and_then(kind)?;
    let same_place = slots(node, "inputs").nth(slot);
    let mut inputs = same_place.into_iter().chain(slots(node, "inputs"));
    inputs.find(|input| kind(input).as_ref() == Some(&output)).and_then(link_of)
}

/// Widgets of nodes inside a subgraph that are shown at the node which stands for it: node, name, value.
fn promoted(user: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let proxies = user.get("properties").and_then(|p| p.get("proxyWidgets")).and_then(Value::as_array);
    let values = user.get("widgets_values").and_then(Value::as_array);
    let pairs = proxies.into_iter().flatten().zip(values.into_iter().flatten());
    pairs.filter_map(|(proxy, value)| {
        let (node, name) = (proxy.get(0)?.as_str()?, proxy.get(1)?.as_str()?);
        (!value.is_null()).then_some((node, name, value))
    })
}

/// The value of a subgraph's input that nothing is linked to, where the node that stands for it has one.
fn own_widget(user: &Value, input: &Value) -> Option<Value> {
    let widget = input.get("widget")?.get("name")?.as_str()?;
    let proxies = user.get("properties").and_then(|p| p.get("proxyWidgets"));
    if proxies.is_some() {
        let mut own = promoted(user).filter(|(node, name, _)| *node == "-1" && *name == widget);
        return own.next().map(|(.., value)| value.clone());
    }
    let place = slots(user, "inputs")
        .filter_map(|input| input.get("widget"))
        .position(|of| of.get("name").and_then(Value::as_str) == Some(widget))?;
    user.get("widgets_values")?.get(place).filter(|value| !value.is_null()).cloned()
}
