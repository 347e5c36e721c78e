//! Which modules an adapter means: PEFT's matching of module names against lists and regular expressions. Knows nothing
//! about graphs or files.

use fancy_regex::Regex;
use std::fmt;
use thiserror::Error;

/// A regular expression that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the pattern `{pattern}` cannot be used: {reason}")]
pub struct PatternError {
    /// The pattern, as the config has it.
    pub pattern: String,
    /// Why.
    pub reason: String,
}

/// A regular expression in Python's syntax.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// `text` inside `frame`, where it takes the place of `{}`. The frame is anchored at the start, as by `re.match`.
    pub(super) fn new(text: &str, frame: &str) -> Result<Self, PatternError> {
        let error = |reason: String| PatternError { pattern: text.to_owned(), reason };
        if let Some(syntax) = differs_from_python(text) {
            return Err(error(format!("`{syntax}` means something else in Python")));
        }
        let framed = format!("^(?:{})", frame.replacen("{}", text, 1));
        let regex = Regex::new(&framed).map_err(|e| error(e.to_string()))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    fn error(&self, source: &fancy_regex::Error) -> PatternError {
        PatternError { pattern: self.text.clone(), reason: source.to_string() }
    }

    pub(super) fn matches(&self, name: &str) -> Result<bool, PatternError> {
        self.regex.is_match(name).map_err(|e| self.error(&e))
    }

    /// The number that the group `idx` captures, if the pattern matches.
    fn index(&self, name: &str) -> Result<Option<u64>, PatternError> {
        let captures = self.regex.captures(name).map_err(|e| self.error(&e))?;
        let idx = captures.as_ref().and_then(|captures| captures.name("idx"));
        // A number that does not fit is that of no layer.
        Ok(idx.map(|idx| idx.as_str().parse().unwrap_or(u64::MAX)))
    }
}

/// Syntax that Python and this crate's engine read differently, where there is some in `pattern`.
fn differs_from_python(pattern: &str) -> Option<&'static str> {
    const IN_CLASS: [&str; 4] = ["[", "&&", "--", "~~"];
    const OUTSIDE: [&str; 2] = ["\\<", "\\>"];
    let (mut in_class, mut rest) = (false, pattern);
    while let Some(c) = rest.chars().next() {
        let different = if in_class { IN_CLASS.as_slice() } else { OUTSIDE.as_slice() };
        if let Some(syntax) = different.iter().find(|syntax| rest.starts_with(**syntax)) {
            return Some(syntax);
        }
        let mut skip = c.len_utf8();
        match c {
            '\\' => skip += rest[1..].chars().next().map_or(0, char::len_utf8),
            '[' => {
                in_class = true;
                // A `]` that comes first stands for itself.
                let body = rest[1..].strip_prefix('^').unwrap_or(&rest[1..]);
                skip = rest.len() - body.strip_prefix(']').unwrap_or(body).len();
            }
            ']' => in_class = false,
            _ => {}
        }
        rest = &rest[skip..];
    }
    None
}

/// A list of names, each of which means a module of that name or of a name that ends in `.name`; or one regular
/// expression that a module's whole name must match.
#[derive(Clone, Debug)]
pub(super) enum Names {
    List(Vec<String>),
    Pattern(Box<Pattern>),
}

impl Names {
    pub(super) fn pattern(text: &str) -> Result<Self, PatternError> {
        // `re.fullmatch`. The pattern must be one by itself: `a)|(b` is none.
        let alone = Regex::new(text);
        alone.map_err(|e| PatternError { pattern: text.to_owned(), reason: e.to_string() })?;
        Ok(Self::Pattern(Box::new(Pattern::new(text, "(?:{})$")?)))
    }

    fn matches(&self, name: &str) -> Result<bool, PatternError> {
        let ends = |wanted: &String| {
            name.strip_suffix(wanted.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'))
        };
        match self {
            Self::List(names) => Ok(names.iter().any(ends)),
            Self::Pattern(pattern) => pattern.matches(name),
        }
    }

    /// Whether a module's whole name is in the list.
    fn lists(&self, name: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|wanted| wanted == name))
    }
}

/// What `target_modules` says.
#[derive(Clone, Debug)]
pub(super) enum Targets {
    /// Every linear layer but the output layer.
    AllLinear,
    /// The modules of these names.
    Named(Names),
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => f.write_str("\"all-linear\""),
            Self::Named(Names::List(names)) => write!(f, "{names:?}"),
            Self::Named(Names::Pattern(pattern)) => write!(f, "{:?}", pattern.text),
        }
    }
}

/// What `layers_to_transform` and `layers_pattern` say: only the layers of these numbers. A module that is listed by its
/// whole name, as `lm_head` mostly is, is adapted whatever they say.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    pub(super) indices: Vec<u64>,
    /// What finds a layer's number in a module's name; the first that matches counts.
    pub(super) patterns: Vec<Pattern>,
}

impl Layers {
    /// The pattern for the first number that stands between dots and not at the front.
    pub(super) const ANY: &str = r".*?\.[^.]*\.(?P<idx>\d+)\.";
    /// The frame around an entry of `layers_pattern`.
    pub(super) const NAMED: &str = r"(?:^|.*?\.){}\.(?P<idx>\d+)\.";

    fn contain(&self, name: &str) -> Result<bool, PatternError> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.index(name)? {
                return Ok(self.indices.contains(&index));
            }
        }
        Ok(false)
    }
}

/// Which modules an adapter adapts.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    pub(super) targets: Targets,
    pub(super) exclude: Option<Names>,
    pub(super) layers: Option<Layers>,
    /// One for each of `modules_to_save`, in [`Selector::SAVED`].
    pub(super) saved: Vec<Pattern>,
}

/// What an adapter does with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// It is adapted.
    Targeted,
    /// It is adapted if it is a linear layer; the output layer only if the adapter has tensors for it.
    TargetedIfLinear,
    /// It is left as it is.
    Untouched,
}

impl Selector {
    /// The frame around an entry of `modules_to_save`: that module and everything in it.
    pub(super) const SAVED: &str = r"(^|.*\.){}($|\..*)";

    /// PEFT's `check_target_module_exists`.
    pub(super) fn select(&self, module: &str) -> Result<Selection, PatternError> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(module)?
        {
            return Ok(Selection::Untouched);
        }
        for saved in &self.saved {
            if saved.matches(module)? {
                return Ok(Selection::Untouched);
            }
        }
        let names = match &self.targets {
            Targets::AllLinear => return Ok(Selection::TargetedIfLinear),
            Targets::Named(names) => names,
        };
        let targeted = names.matches(module)?
            && match &self.layers {
                Some(layers) => names.lists(module) || layers.contain(module)?,
                None => true,
            };
        Ok(if targeted { Selection::Targeted } else { Selection::Untouched })
    }
}

/// Values by pattern, as in `rank_pattern`: the first pattern that matches the end of a module's name counts.
#[derive(Clone, Debug)]
pub(super) struct ByPattern<T>(pub(super) Vec<(Pattern, T)>);

impl<T: Copy> ByPattern<T> {
    /// The frame around a key: PEFT's `get_pattern_key`.
    pub(super) const FRAME: &str = r"(.*\.)?({})$";

    pub(super) fn get(&self, module: &str) -> Result<Option<T>, PatternError> {
        for (pattern, value) in &self.0 {
            if pattern.matches(module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(pattern: &str, name: &str) -> bool {
        Names::pattern(pattern).unwrap().matches(name).unwrap()
    }

    #[test]
    fn a_target_regex_matches_whole_names() {
        assert!(full(".*fc2", "h.0.fc2"));
        assert!(!full("fc2", "h.0.fc2"));
        assert!(!full(".*fc", "h.0.fc2"));
        assert!(full("fc1|fc2", "fc2"));
        assert!(!full("fc1|fc2", "fc2x"));
        assert!(full(r"^(?!.*vision).*\.(q|v)_proj$", "text.h.3.q_proj"));
        assert!(!full(r"^(?!.*vision).*\.(q|v)_proj$", "vision.h.3.q_proj"));
        assert!(full(r"(a)\1\Z", "aa"));
    }

    #[test]
    fn a_list_matches_whole_components_at_the_end() {
        let list = Names::List(vec!["fc".to_owned(), "attn.q".to_owned()]);
        for (name, expected) in [
            ("fc", true),
            ("h.0.fc", true),
            ("h.0.xfc", false),
            ("fc.x", false),
            ("h.attn.q", true),
            ("h.q", false),
        ] {
            assert_eq!(list.matches(name), Ok(expected), "{name}");
        }
    }

    #[test]
    fn a_layer_is_the_first_number_in_a_name() {
        let layers = |pattern: Option<&str>| Layers {
            indices: vec![1, 3],
            patterns: vec![match pattern {
                Some(pattern) => Pattern::new(pattern, Layers::NAMED).unwrap(),
                None => Pattern::new("", Layers::ANY).unwrap(),
            }],
        };
        for (name, any, named) in [
            ("model.layers.1.fc", true, true),
            ("model.layers.2.fc", false, false),
            ("model.layers.2.experts.1.fc", false, false),
            ("model.h.3.fc", true, false),
            ("layers.1.fc", false, true),
            ("fc", false, false),
            ("model.layers.99999999999999999999999.fc", false, false),
        ] {
            assert_eq!(layers(None).contain(name), Ok(any), "{name}");
            assert_eq!(layers(Some("layers")).contain(name), Ok(named), "{name}");
        }
    }

    #[test]
    fn a_module_listed_by_its_whole_name_is_in_every_layer() {
        let selector = Selector {
            targets: Targets::Named(Names::List(vec![
                "lm_head".to_owned(),
                "h.1.fc".to_owned(),
                "q".to_owned(),
            ])),
            exclude: None,
            layers: Some(Layers { indices: vec![0], patterns: vec![Pattern::new("", Layers::ANY).unwrap()] }),
            saved: Vec::new(),
        };
        for (module, expected) in [
            ("lm_head", Selection::Targeted),
            ("h.1.fc", Selection::Targeted),
            ("model.h.1.fc", Selection::Untouched),
            ("model.h.0.q", Selection::Targeted),
            ("model.h.1.q", Selection::Untouched),
        ] {
            assert_eq!(selector.select(module), Ok(expected), "{module}");
        }
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let keys = ["fc.", "^h.0.fc1", "(h.1.)?fc1"];
        let patterns = keys.map(|key| Pattern::new(key, ByPattern::<u64>::FRAME).unwrap());
        let by_pattern = ByPattern(patterns.into_iter().zip(1_u64..).collect());
        assert_eq!(by_pattern.get("h.0.fc1"), Ok(Some(1)));
        assert_eq!(by_pattern.get("h.0.fc"), Ok(None));
        let later = ByPattern(by_pattern.0.into_iter().skip(1).collect());
        assert_eq!(later.get("h.0.fc1"), Ok(Some(2)));
        assert_eq!(later.get("model.h.0.fc1"), Ok(Some(3)));
        assert_eq!(later.get("xfc1"), Ok(None));
    }

    #[test]
    fn what_python_reads_differently_is_refused() {
        for (pattern, syntax) in
            [("[a[b]]", "["), ("[a&&b]", "&&"), ("[a--z]", "--"), (r"a\<b", r"\<"), (r"[\]~~]", "~~")]
        {
            let error = Pattern::new(pattern, "{}").unwrap_err();
            assert_eq!(error.reason, format!("`{syntax}` means something else in Python"), "{pattern}");
        }
        for pattern in ["[]a]", "[^]a]", r"a\[b", "a&&b", r"[\]]&&", "--", r"[\[]"] {
            assert!(Pattern::new(pattern, "{}").is_ok(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_does_not_parse_is_refused_and_one_that_never_ends_too() {
        assert!(Pattern::new("(", "{}").unwrap_err().to_string().contains("`(`"));
        assert!(Names::pattern("a)|(b").unwrap_err().to_string().contains("`a)|(b`"));
        let slow = Pattern::new(r"(?:(x+x+)+y)(?=z)", "{}").unwrap();
        assert_eq!(slow.matches(&"x".repeat(64)).unwrap_err().pattern, r"(?:(x+x+)+y)(?=z)");
    }
}
