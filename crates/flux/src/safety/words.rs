//! What the prompt gate looks for, and how it sees through spelling.
//!
//! Entries are whole words, or several in a row. A text is read several times: as it is, with digits and signs as the letters
//! that they stand in for, and with letters that stand alone put together. Case, accents, characters without width and letters
//! of other alphabets that look alike make no difference. Scripts without spaces are searched within.

use std::{collections::HashMap, io::Read, path::Path, sync::Arc};

use unicode_normalization::UnicodeNormalization;

use crate::error::{Error, Result};

/// Largest list that is read, bytes.
const MAX_LIST: u64 = 4 << 20;

/// Words and phrases, each with what it stands for.
#[derive(Debug, Default)]
pub(super) struct WordList {
    /// By the first word.
    phrases: HashMap<String, Vec<Phrase>>,
    /// In scripts without spaces.
    within: Vec<(String, Arc<str>)>,
}

/// The words that follow the first, and what they stand for together.
type Phrase = (Vec<String>, Arc<str>);

impl WordList {
    /// An operator's list: an entry a line, `[category]` above those it is for, `#` before what is only for people.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and the line.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::file(path, format!("(a word list) {problem}"));
        let file = std::fs::File::open(path).map_err(|e| refuse(format!("cannot be opened: {e}")))?;
        let mut bytes = Vec::new();
        file.take(MAX_LIST + 1).read_to_end(&mut bytes).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        if bytes.len() as u64 > MAX_LIST {
            return Err(refuse(format!("is larger than {} MiB", MAX_LIST >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = e.as_bytes()[..e.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
            refuse(format!("is not UTF-8 in line {line}; hint: save it as UTF-8 text"))
        })?;
        Self::parse(&text, "the operator's word list").map_err(refuse)
    }

    /// Entries before the first `[category]` belong to `category`.
    ///
    /// # Errors
    /// A sentence without its subject, naming the line.
    pub(super) fn parse(text: &str, category: &str) -> Result<Self, String> {
        let mut list = Self::default();
        let mut category: Arc<str> = category.into();
        for (number, line) in (1..).zip(text.trim_start_matches('\u{FEFF}').lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                let name = name.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| format!("has no name between brackets in line {number}: '{line}'"))?;
                category = name.into();
                continue;
            }
            let folded = fold(line);
            let mut words = words(&folded);
            if words.is_empty() {
                return Err(format!("has an entry without a letter or digit in line {number}: '{line}'"));
            }
            if folded.chars().any(is_unspaced) {
                list.within.push((words.concat(), category.clone()));
            } else {
                let first = words.remove(0);
                list.phrases.entry(first).or_default().push((words, category.clone()));
            }
        }
        if list.phrases.is_empty() && list.within.is_empty() {
            return Err("has no entries; hint: one a line".into());
        }
        Ok(list)
    }

    /// The category of the first entry that is in the text.
    pub(super) fn find(&self, text: &Readings) -> Option<&str> {
        for words in &text.readings {
            for (at, word) in words.iter().enumerate() {
                let phrases = self.phrases.get(word).into_iter().flatten();
                let found = phrases.into_iter().find(|(rest, _)| words[at + 1..].starts_with(rest));
                if let Some((_, category)) = found {
                    return Some(category);
                }
            }
        }
        let found = self.within.iter().find(|(entry, _)| text.unspaced.contains(entry));
        found.map(|(_, category)| &**category)
    }
}

/// A text as it can be read.
#[derive(Debug)]
pub(super) struct Readings {
    /// Words; the first reading is the text as it stands.
    readings: Vec<Vec<String>>,
    /// All of it without spaces, if some of it is in a script that has none.
    unspaced: String,
}

impl Readings {
    pub(super) fn of(text: &str) -> Self {
        let folded = fold(text);
        let unspaced = if folded.chars().any(is_unspaced) { words(&folded).concat() } else { String::new() };
        let mut readings: Vec<Vec<String>> = Vec::new();
        let letters = ['i', 'l'].map(|one| as_letters(&folded, one));
        for reading in [&folded, &letters[0], &letters[1]] {
            let plain = words(reading);
            let joined = joined(&plain);
            for reading in [plain, joined] {
                if !readings.contains(&reading) {
                    readings.push(reading);
                }
            }
        }
        Self { readings, unspaced }
    }

    /// The words as they stand.
    pub(super) fn plain(&self) -> &[String] {
        &self.readings[0]
    }

    /// The words of each reading.
    pub(super) fn all(&self) -> &[Vec<String>] {
        &self.readings
    }
}

/// Without case, accents, width and invisible characters; letters that look Latin are Latin.
fn fold(text: &str) -> String {
    text.nfkd().filter(|c| !is_invisible(*c) && !is_accent(*c)).flat_map(char::to_lowercase).map(latin).collect()
}

fn is_accent(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36F}' | '\u{1AB0}'..='\u{1AFF}' | '\u{1DC0}'..='\u{1DFF}' | '\u{20D0}'..='\u{20FF}'
        | '\u{FE20}'..='\u{FE2F}')
}

/// Unicode's characters that can be ignored where they are not understood.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}'
        | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{E0000}'..='\u{E0FFF}')
}

/// The Latin letter that a small Cyrillic or Greek one looks like.
fn latin(c: char) -> char {
    const CYRILLIC: (&str, &str) = ("авеһіјкмнорсѕтухԁԛԝ", "abehijkmhopcstyxdqw");
    const GREEK: (&str, &str) = ("αβεηικνορτυχω", "abenikvoptuxw");
    if c.is_ascii() {
        return c;
    }
    let looks = |(from, to): (&str, &str)| from.chars().zip(to.chars()).find(|(from, _)| *from == c);
    looks(CYRILLIC).or_else(|| looks(GREEK)).map_or(c, |(_, to)| to)
}

/// Scripts that are written without spaces, and Hangul, whose particles cling to words.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{E00}'..='\u{EFF}' | '\u{1000}'..='\u{109F}' | '\u{1100}'..='\u{11FF}' | '\u{1780}'..='\u{17FF}'
        | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7FF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// Digits and signs as letters, within what has letters; a one is an i or an l.
fn as_letters(text: &str, one: char) -> String {
    let letter = |c: char| match c {
        '0' => 'o',
        '1' | '!' | '|' => one,
        '3' | '€' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' | '+' => 't',
        '8' => 'b',
        _ => c,
    };
    let chunks = text.split_inclusive(char::is_whitespace).map(|chunk| {
        let chunk_has_letters = chunk.chars().any(char::is_alphabetic);
        chunk.chars().map(|c| if chunk_has_letters { letter(c) } else { c }).collect::<String>()
    });
    chunks.collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Three and more single letters in a row are a word that was pulled apart.
fn joined(words: &[String]) -> Vec<String> {
    let mut joined: Vec<String> = Vec::new();
    let is_single = |word: &String| word.chars().nth(1).is_none();
    for run in words.chunk_by(|a, b| is_single(a) && is_single(b)) {
        if run.len() >= 3 {
            joined.push(run.concat());
        } else {
            joined.extend_from_slice(run);
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: &str, text: &str) -> Option<String> {
        let list = WordList::parse(list, "listed").unwrap();
        list.find(&Readings::of(text)).map(str::to_owned)
    }

    #[test]
    fn spelling_does_not_hide_a_word() {
        for text in [
            "a Zorblax on a hill",
            "ZORBLAX",
            "the zorblax's tail",
            "z0rbl4x",
            "zorb1ax",
            "z\u{200B}orb\u{AD}lax",
            "zörbláx",
            "z\u{337}o\u{337}rblax",
            "ｚｏｒｂｌａｘ",
            "zоrblах", // Cyrillic о, а, х
            "z.o.r.b.l.a.x",
            "z o r b l a x",
            "z-0-r-b-l-@-x",
            "un zorblax!",
        ] {
            assert_eq!(found("zorblax", text).as_deref(), Some("listed"), "{text}");
        }
        for text in ["zorblaxes", "a zorb lax", "azorblax", "", "!!!", "10 70 41"] {
            assert_eq!(found("zorblax", text), None, "{text}");
        }
        // A one can be either letter, and a number a number.
        assert_eq!(found("pixie", "p1x1e").as_deref(), Some("listed"));
        assert_eq!(found("agent 47", "Agent 47, in a suit").as_deref(), Some("listed"));
        assert_eq!(found("so", "50 apples"), None);
    }

    #[test]
    fn phrases_are_words_in_a_row() {
        let list = "Mickey   Mouse # a comment\n\n# another\n[brands]\ncola-drop\n裸の王様\n";
        for (text, category) in [
            ("mickey mouse, waving", Some("listed")),
            ("MICKEY-MOUSE", Some("listed")),
            ("a mouse called Mickey", None),
            ("mickey the mouse", None),
            ("a can of Cola Drop", Some("brands")),
            ("古い裸の王様の絵", Some("brands")),
            ("王様", None),
        ] {
            assert_eq!(found(list, text).as_deref(), category, "{text}");
        }
    }

    #[test]
    fn bad_lists_name_the_line() {
        for (list, words) in [
            ("", "no entries"),
            ("# only a comment", "no entries"),
            ("apple\n***\n", "line 2: '***'"),
            ("[]\napple", "line 1"),
            ("[brands\napple", "line 1"),
        ] {
            let problem = WordList::parse(list, "listed").unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.txt");
        let told = |path: &Path| WordList::open(path).unwrap_err().to_string();
        assert!(told(&path).contains("words.txt: (a word list) cannot be opened"), "{}", told(&path));
        assert!(told(folder.path()).contains("cannot be read"), "{}", told(folder.path()));
        std::fs::write(&path, b"apple\n\xFF\xFE").unwrap();
        assert!(told(&path).contains("not UTF-8 in line 2"), "{}", told(&path));
        std::fs::write(&path, vec![b'a'; (MAX_LIST + 1) as usize]).unwrap();
        assert!(told(&path).contains("larger than 4 MiB"), "{}", told(&path));
        std::fs::write(&path, "\u{FEFF}apple\r\npear\r\n").unwrap();
        assert!(WordList::open(&path).unwrap().find(&Readings::of("an apple")).is_some());
    }
}
