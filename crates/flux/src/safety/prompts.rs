//! The prompt gate: words that no ordinary description of a picture needs.
//!
//! Three lists one after the other: `rustrict`'s words that it calls severe, which is made for chats and sees through spelling;
//! words that are embedded (`assets/safety/words.txt`); the operator's own. And one rule: a child together with nakedness or
//! sex. What these see and do not see is in `docs/safety.md`.

use std::{collections::HashSet, path::Path, sync::LazyLock};

use rustrict::{Censor, Type};

use super::words::{Readings, WordList};
use crate::error::Result;

/// Refused by the rule, and by words that mean it.
const MINORS: &str = "sexual content with minors";
const SEXUAL: &str = "sexual content";
const SLURS: &str = "slurs";

static EMBEDDED: LazyLock<WordList> = LazyLock::new(|| {
    WordList::parse(include_str!("../../assets/safety/words.txt"), SEXUAL).expect("the embedded list is well formed")
});

/// Words for people who are not grown up.
const YOUNG: &str = "child children kid kids toddler toddlers baby babies infant infants boy boys girl girls schoolgirl \
    schoolgirls schoolboy schoolboys teen teens teenage teenager teenagers preteen preteens tween tweens minor minors underage \
    adolescent adolescents pubescent prepubescent";

/// Words that a child is not described by.
const NAKED: &str = "naked nude nudes nudity undress undressed undressing unclothed topless sex sexy sexual sexually sexualized \
    sexualised erotic erotica porn porno horny seductive seductively aroused fetish lingerie panties nipples penis vagina";

/// What `rustrict` takes for something else: birds, cats, rivers, towns, names, old words, titles of paintings. Found by giving
/// it a dictionary of 104,000 words and 44,000 lines of quotations, one word at a time.
const INNOCENT: &str = "antofagasta\nbastard\nbastards\nbonner\nboobies\nbooby\nbuggers\nchink in the armor\n\
    chink in the armour\nchink of light\nchinks of light\ncoon cat\ncoon cats\ncummings\nfagan\nfaggot of firewood\n\
    faggot of wood\nfaggots of wood\nfagin\nflange\nflanges\nfoursome\nfoursomes\nhoare\nhotwater\njohn lee hooker\n\
    kanchenjunga\nkonigsberg\nkoontz\nmaine coon\nmaine coons\nmuff\nmuffs\nngaliema\nniger\nniggard\nniggardliness\n\
    niggardly\nniggards\nniggle\nniggles\nniggling\npreminger\npronunciate\npuberty\nrape blossom\nrape field\n\
    rape fields\nrape of europa\nrape of proserpina\nrape of the lock\nrape of the sabine women\nrape of the sabines\n\
    rape oil\nschwarzenegger\nsmartwatch\nsmartwatches\nsnigger\nsniggered\nsniggering\nsniggers\nwankel\nwitwatersrand";

static INNOCENT_WORDS: LazyLock<Vec<Vec<&str>>> =
    LazyLock::new(|| INNOCENT.lines().map(|line| line.split_whitespace().collect()).collect());

/// What refuses a prompt.
#[derive(Debug)]
pub(super) struct PromptGate {
    /// Whether what is built in is asked.
    built_in: bool,
    own: Option<WordList>,
}

impl PromptGate {
    /// `None` if there is nothing to look for.
    ///
    /// # Errors
    /// [`crate::Error::File`] about the list.
    pub(super) fn open(built_in: bool, list: Option<&Path>) -> Result<Option<Self>> {
        let own = list.map(WordList::open).transpose()?;
        Ok((built_in || own.is_some()).then_some(Self { built_in, own }))
    }

    /// As it stands in metadata: `words`, `words+list` or `list`.
    pub(super) fn name(&self) -> &'static str {
        match (self.built_in, &self.own) {
            (true, None) => "words",
            (true, Some(_)) => "words+list",
            (false, _) => "list",
        }
    }

    /// The category that the text belongs to, if it is one that is refused.
    pub(super) fn category(&self, text: &str) -> Option<&str> {
        let readings = Readings::of(text);
        let built_in = if self.built_in { built_in(&readings) } else { None };
        built_in.or_else(|| self.own.as_ref()?.find(&readings))
    }
}

fn built_in(readings: &Readings) -> Option<&'static str> {
    let words: HashSet<&str> = readings.all().iter().flatten().map(String::as_str).collect();
    let has = |list: &str| list.split_whitespace().any(|word| words.contains(word));
    if (has(YOUNG) || has_age(readings.plain())) && has(NAKED) {
        return Some(MINORS);
    }
    if let Some(category) = EMBEDDED.find(readings) {
        return Some(category);
    }
    // Word for word: over several, it finds things between the end of one and the beginning of the next.
    let rest: HashSet<&str> = readings.all().iter().flat_map(|words| without_innocent(words)).collect();
    let kinds: Vec<Type> =
        rest.into_iter().filter(|word| is_word(word)).map(|word| Censor::from_str(word).analyze()).collect();
    let severe = |kind: Type| kinds.iter().any(|found| found.is(kind & Type::SEVERE));
    match () {
        () if severe(Type::SEXUAL) => Some(SEXUAL),
        () if severe(Type::OFFENSIVE) => Some(SLURS),
        () => None,
    }
}

/// Whether it has as many letters as digits: serial numbers spell all sorts of things.
fn is_word(word: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    2 * digits <= word.chars().count()
}

/// `12 years old`, `15-year-old`, `9yo`.
fn has_age(words: &[String]) -> bool {
    words.iter().enumerate().any(|(at, word)| {
        let digits = word.chars().take_while(char::is_ascii_digit).count();
        let next = words.get(at + 1).map_or("", String::as_str);
        let unit = if digits == word.len() { next } else { &word[digits..] };
        let is_unit = ["yo", "year", "years", "yr", "yrs", "yearold"].contains(&unit);
        is_unit && word[..digits].parse().is_ok_and(|age: u32| age < 18)
    })
}

fn without_innocent(words: &[String]) -> Vec<&str> {
    let mut rest = Vec::with_capacity(words.len());
    let mut at = 0;
    while at < words.len() {
        let starts = |phrase: &&Vec<&str>| {
            words.len() - at >= phrase.len() && words[at..].iter().zip(*phrase).all(|(a, b)| a == b)
        };
        if let Some(len) = INNOCENT_WORDS.iter().filter(starts).map(Vec::len).max() {
            at += len;
        } else {
            rest.push(words[at].as_str());
            at += 1;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn category(prompt: &str) -> Option<String> {
        let gate = PromptGate::open(true, None).unwrap().unwrap();
        gate.category(prompt).map(str::to_owned)
    }

    #[test]
    fn ordinary_prompts_pass() {
        for prompt in [
            "",
            "a red apple",
            "a cock crowing at dawn",
            "Scunthorpe town hall in the rain",
            "Penistone market, Essex and Sussex, Middlesex",
            "analysis of grapes on a table",
            "breast of chicken with rosemary",
            "a mother breastfeeding her baby",
            "Dick Turpin on Black Bess",
            "Moby Dick, the white whale",
            "a naked tree in winter",
            "nude figure drawing in charcoal",
            "the birth of Venus by Botticelli",
            "the Rape of Europa by Titian",
            "a field of rapeseed, a rape field in bloom",
            "a great tit on a branch, a blue-footed booby",
            "a pussy cat and pussy willows",
            "a bitch with her puppies",
            "a bloody sunset",
            "an ass and a donkey",
            "sperm whale, cumulus clouds",
            "the Niger river, Nigeria's flag",
            "a Maine Coon cat, a raccoon",
            "shiitake mushrooms, a shuttlecock, a peacock in a cockpit",
            "a smartwatch and ear muffs, a Wankel engine, a golf foursome, a flange",
            "chinks of light through shutters; a booby trap; the Bastard of Orleans",
            "John Lee Hooker on stage, Antofagasta at night, Kanchenjunga",
            "who're you? 199707300650",
            "a world where the standard dress is shirt and tie",
            "I'm Larry, this is my brother, 3552664958674928",
            "a spicy curry, a hot dog, a virgin forest",
            "a gay pride parade",
            "a Jewish wedding, a Muslim family at dinner",
            "a black man and a white woman dancing",
            "a homo sapiens skeleton",
            "a boy and a girl on a swing",
            "a 12 year old girl with a kite",
            "children bathing at the beach, oil painting by Sorolla",
            "assassin, class, grass, bass guitar, analog photograph",
            "a gun on a table, a dead tree, a shooting star",
            "Hitchcock film still, hell's kitchen, damn fine coffee",
            "八百屋の店先, 桜",
            "обнажённое дерево",
        ] {
            assert_eq!(category(prompt), None, "{prompt}");
        }
    }

    #[test]
    fn others_are_refused_by_category() {
        for (prompt, expected) in [
            ("hardcore porn scene", SEXUAL),
            ("p0rn", SEXUAL),
            ("p\u{200B}orn", SEXUAL),
            ("p.o.r.n", SEXUAL),
            ("a P 0 R N star", SEXUAL),
            ("a man with an erect penis", SEXUAL),
            ("two people having sex", SEXUAL),
            ("N S F W", SEXUAL),
            ("a blow-job", SEXUAL),
            ("gang bang", SEXUAL),
            ("naked children", MINORS),
            ("a nude 15-year-old", MINORS),
            ("sexy 9yo", MINORS),
            ("n4k3d k1ds", MINORS),
            ("lolicon", MINORS),
            ("child porn", MINORS),
            ("a n1gger", SLURS),
        ] {
            assert_eq!(category(prompt).as_deref(), Some(expected), "{prompt}");
        }
    }

    #[test]
    fn a_long_prompt_is_read_in_time() {
        let long = "a red apple on a table, z 0 r b ".repeat(3_000);
        let start = std::time::Instant::now();
        assert_eq!(category(&long), None);
        assert!(start.elapsed().as_secs() < 20, "{:?} for 96 kB", start.elapsed());
    }
}
