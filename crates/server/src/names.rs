//! What models are called: this server's own names, the operator's aliases, and the names that clients of the vendors send.

use std::collections::BTreeMap;

/// The gateway's name of FLUX.1 Krea \[dev\]: the first that is listed.
pub const GATEWAY: &str = "flux.1-krea-dev";

/// What else FLUX.1 Krea \[dev\] is called.
const KREA: [&str; 9] = [
    GATEWAY,
    "flux-krea-dev",
    "flux.1-krea",
    "flux-krea",
    "krea",
    "black-forest-labs/flux.1-krea-dev",
    "black-forest-labs/flux-krea-dev",
    "fal-ai/flux/krea",
    "fal-ai/flux-1/krea",
];

/// Beginnings of names that front ends have built in.
const BUILT_IN: [&str; 3] = ["gpt-image-", "chatgpt-image-", "dall-e-"];

/// The shelf's name of what `asked` means; `None` if it is not served here. Without a name it is the shelf's first. Vendors' names of
/// Krea mean the shelf's Krea if it has one, otherwise its first.
pub fn resolve<'a>(asked: Option<&str>, shelf: &'a [String], aliases: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let first = shelf.first().map(String::as_str);
    let Some(asked) = asked.map(str::trim).filter(|asked| !asked.is_empty()) else { return first };
    let own = |name: &str| shelf.iter().find(|own| own.eq_ignore_ascii_case(name)).map(String::as_str);
    let alias = || aliases.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(asked)).and_then(|(_, name)| own(name));
    let lower = asked.to_ascii_lowercase();
    let vendors = || {
        let krea = KREA.contains(&lower.as_str());
        let built_in = BUILT_IN.iter().any(|beginning| lower.starts_with(beginning));
        let named_so = shelf.iter().find(|own| own.to_ascii_lowercase().contains("krea")).map(String::as_str);
        if krea { named_so.or(first) } else { first.filter(|_| built_in) }
    };
    own(asked).or_else(alias).or_else(vendors)
}

/// The names that are listed: the gateway's, the shelf's own, the operator's aliases.
pub fn listed(shelf: &[String], aliases: &BTreeMap<String, String>) -> Vec<String> {
    let own = shelf.iter().filter(|name| !name.eq_ignore_ascii_case(GATEWAY));
    std::iter::once(&GATEWAY.to_owned()).chain(own).chain(aliases.keys()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_names_find_their_model() {
        let shelf = ["pocket", "krea", "schnell"].map(str::to_owned);
        let aliases =
            BTreeMap::from([("fast".to_owned(), "schnell".to_owned()), ("gone".to_owned(), "nothing".to_owned())]);
        let found = |name: Option<&str>| resolve(name, &shelf, &aliases);
        assert_eq!((found(None), found(Some(" "))), (Some("pocket"), Some("pocket")));
        assert_eq!(
            (found(Some("Schnell")), found(Some("FAST")), found(Some("gone"))),
            (Some("schnell"), Some("schnell"), None)
        );
        for name in ["flux.1-krea-dev", "black-forest-labs/FLUX.1-Krea-dev", "fal-ai/flux/krea"] {
            assert_eq!(found(Some(name)), Some("krea"), "{name}");
        }
        assert_eq!(found(Some("chatgpt-image-latest")), Some("pocket"));
        assert_eq!((found(Some("gpt-image-1")), found(Some("dall-e-3"))), (Some("pocket"), Some("pocket")));
        assert_eq!((found(Some("sdxl")), found(Some("../secret"))), (None, None));
        let taken = BTreeMap::from([("pocket".to_owned(), "krea".to_owned())]);
        assert_eq!(resolve(Some("pocket"), &shelf, &taken), Some("pocket"), "a name goes before an alias");
        assert_eq!(resolve(None, &[], &aliases), None);
        let pocket = ["pocket".to_owned()];
        assert_eq!(resolve(Some(GATEWAY), &pocket, &aliases), Some("pocket"));
        assert_eq!(listed(&pocket, &BTreeMap::new()), [GATEWAY, "pocket"]);
    }
}
