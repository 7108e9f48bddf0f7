//! Rust and Markdown reduced to what a rule looks at, line by line as in the file.

use std::{iter::Peekable, str::CharIndices};

/// Rust without comments and without the contents of strings and characters; every line stays where it is.
pub(crate) fn code(rust: &str) -> String {
    let mut out = String::with_capacity(rust.len());
    let mut chars = rust.char_indices().peekable();
    let mut before = ' ';
    while let Some((at, c)) = chars.next() {
        let rest = &rust[at..];
        if rest.starts_with("//") {
            skip(&mut chars, &mut out, rest.find('\n').unwrap_or(rest.len()), at);
        } else if rest.starts_with("/*") {
            skip(&mut chars, &mut out, block_comment(rest), at);
        } else if let Some(length) = literal(rest, before) {
            out.push('"');
            skip(&mut chars, &mut out, length, at);
            out.push('"');
        } else {
            out.push(c);
        }
        before = c;
    }
    out
}

/// Passes over what is left of `length` bytes from `start`, keeping only its line ends.
fn skip(chars: &mut Peekable<CharIndices<'_>>, out: &mut String, length: usize, start: usize) {
    while let Some((_, c)) = chars.next_if(|(at, _)| *at < start + length) {
        if c == '\n' {
            out.push(c);
        }
    }
}

/// Bytes of the comment (and of those inside it) that `rest` begins with.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Bytes of the string or character that `rest` begins with. `before` tells `r"…"` from an identifier's end.
fn literal(rest: &str, before: char) -> Option<usize> {
    let in_word = before.is_alphanumeric() || before == '_';
    let hashes = |s: &str| s.len() - s.trim_start_matches('#').len();
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).filter(|_| !in_word);
    if let Some(tail) = raw
        && tail[hashes(tail)..].starts_with('"')
    {
        let end = format!("\"{}", "#".repeat(hashes(tail)));
        let open = rest.len() - tail.len() + end.len();
        return Some(rest[open..].find(&end).map_or(rest.len(), |close| open + close + end.len()));
    }
    match rest.as_bytes() {
        [b'"', ..] => Some(quoted(rest, '"')),
        // A lifetime is a quote without a second one behind the next character.
        [b'\'', b'\\', ..] => Some(quoted(rest, '\'')),
        [b'\'', ..] => {
            let mut inside = rest.char_indices().skip(1);
            let (_, c) = inside.next()?;
            let (at, close) = inside.next()?;
            (c != '\'' && close == '\'').then_some(at + 1)
        }
        _ => None,
    }
}

/// Bytes up to the closing quote that no backslash escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + c.len_utf8();
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

/// Numbered lines of Markdown outside of fenced blocks.
pub(crate) fn prose(markdown: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(markdown.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// A line's text between backticks, and the line without it.
pub(crate) fn backticks(line: &str) -> (Vec<&str>, String) {
    let (inside, outside): (Vec<_>, Vec<_>) = line.split('`').enumerate().partition(|(i, _)| i % 2 == 1);
    (inside.into_iter().map(|(_, s)| s).collect(), outside.into_iter().map(|(_, s)| s).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_go_and_lines_stay() {
        let rust = "a(\"x // \\\" y\", 'c', '\\'', b\"z\"); // end\n/* one\n/* two */ three */ b<'a>(r#\"raw \" \"#)\n";
        assert_eq!(code(rust), "a(\"\", \"\", \"\", b\"\"); \n\n b<'a>(\"\")\n");
    }

    #[test]
    fn a_word_that_ends_in_r_begins_no_raw_string() {
        assert_eq!(code("for\"x\""), "for\"\"");
        assert_eq!(code("let r#type = 1;"), "let r#type = 1;");
    }

    #[test]
    fn prose_is_what_no_fence_holds() {
        let lines: Vec<_> = prose("a\n```sh\nb\n```\nc").collect();
        assert_eq!(lines, [(1, "a"), (5, "c")]);
        assert_eq!(backticks("a `b` c `d`"), (vec!["b", "d"], "a  c ".to_owned()));
    }
}
