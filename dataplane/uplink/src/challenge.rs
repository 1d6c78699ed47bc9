//! `WWW-Authenticate` (RFC 9110, section 11.6.1), as far as registries use it. Pure.
//!
//! The header is a list of challenges that are themselves lists, separated by the same comma; a
//! word followed by `=` is a parameter, another word begins the next challenge. What cannot be
//! read ends the parsing, and what was read until there counts.

/// The longest header value that is looked at.
pub const VALUE_BYTES_MAX: usize = 8 << 10;

/// How many challenges are read from one value.
const CHALLENGES_MAX: usize = 8;

/// How many parameters are read of one challenge.
const PARAMETERS_MAX: usize = 16;

/// A way to authenticate that we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token from a token service (the registry's token specification).
    Bearer {
        /// The service's URL, unchecked.
        realm: String,
        /// For whom the token is.
        service: Option<String>,
        /// What the token should allow.
        scope: Option<String>,
    },
    /// User and password.
    Basic,
}

/// The challenges of one header value that we know, in order. A Bearer challenge without a realm
/// is none.
pub fn parse(value: &str) -> Vec<Challenge> {
    let mut parser = Parser { rest: value };
    let mut known = Vec::new();
    if value.len() > VALUE_BYTES_MAX {
        return known;
    }
    for _ in 0..CHALLENGES_MAX {
        let Some((scheme, parameters)) = parser.challenge() else { break };
        if scheme.eq_ignore_ascii_case("basic") {
            known.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let parameter = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
                    .filter(|value| !value.is_empty())
            };
            if let Some(realm) = parameter("realm") {
                let (service, scope) = (parameter("service"), parameter("scope"));
                known.push(Challenge::Bearer { realm, service, scope });
            }
        }
    }
    known
}

/// The challenge to answer of those in several header values: a Bearer before a Basic one.
pub fn choose<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let known: Vec<_> = values.into_iter().take(CHALLENGES_MAX).flat_map(parse).collect();
    let bearer = known.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(known.first()).cloned()
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// The next challenge: its scheme and parameters.
    fn challenge(&mut self) -> Option<(&'a str, Vec<(&'a str, String)>)> {
        self.skip(|c| c == ',' || is_space(c));
        let scheme = self.word(is_token)?;
        let mut parameters = Vec::new();
        if self.skip(is_space) == 0 || self.skip_token68() {
            return Some((scheme, parameters));
        }
        loop {
            let before = self.rest;
            self.skip(|c| c == ',' || is_space(c));
            let Some((name, value)) = self.parameter() else {
                // Not a parameter: the scheme of the next challenge, or nonsense.
                self.rest = before;
                return Some((scheme, parameters));
            };
            if parameters.len() < PARAMETERS_MAX {
                parameters.push((name, value));
            }
        }
    }

    /// `token68`, as `Negotiate` has: it is skipped.
    fn skip_token68(&mut self) -> bool {
        let end = self.rest.find(|c: char| !is_token68(c)).unwrap_or(self.rest.len());
        let after = self.rest[end..].trim_start_matches('=').trim_start_matches(is_space);
        let found = end > 0 && (after.is_empty() || after.starts_with(','));
        if found {
            self.rest = after;
        }
        found
    }

    /// `name=value` or `name="value"`, with spaces around the sign as RFC 9110 tolerates.
    fn parameter(&mut self) -> Option<(&'a str, String)> {
        let name = self.word(is_token)?;
        self.skip(is_space);
        self.rest = self.rest.strip_prefix('=')?;
        self.skip(is_space);
        match self.rest.strip_prefix('"') {
            Some(rest) => {
                self.rest = rest;
                Some((name, self.quoted()?))
            }
            // Some write URLs without quotes, so a value is read up to what separates.
            None => Some((name, self.word(|c| !is_space(c) && c != ',' && c != '"')?.to_owned())),
        }
    }

    /// The rest of a quoted string, after its first quote.
    fn quoted(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                '\\' => text.push(characters.next()?.1),
                other => text.push(other),
            }
        }
        None
    }

    fn word(&mut self, part: impl Fn(char) -> bool) -> Option<&'a str> {
        let end = self.rest.find(|c: char| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    /// Skips, and says how many bytes.
    fn skip(&mut self, part: impl Fn(char) -> bool) -> usize {
        let before = self.rest.len();
        self.rest = self.rest.trim_start_matches(part);
        before - self.rest.len()
    }
}

fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn is_token68(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+/".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn the_challenge_of_docker_hub_is_understood() {
        let value = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        assert_eq!(
            parse(value),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/alpine:pull")
            )]
        );
    }

    #[test]
    fn commas_and_escapes_inside_quotes_belong_to_the_value() {
        let value = r#"bearer realm="https://a/\"x\\", scope="repository:a:pull,push repository:b:pull" , error="invalid_token""#;
        assert_eq!(
            parse(value),
            [bearer(r#"https://a/"x\"#, None, Some("repository:a:pull,push repository:b:pull"))]
        );
    }

    #[test]
    fn several_challenges_in_one_value_are_told_apart() {
        let value =
            r#"Negotiate, NTLM abc==, Basic realm="a, b", Bearer realm=https://t/x?a=b,service=s"#;
        assert_eq!(parse(value), [Challenge::Basic, bearer("https://t/x?a=b", Some("s"), None)]);
        assert_eq!(choose([value]), Some(bearer("https://t/x?a=b", Some("s"), None)));
        assert_eq!(choose(["Digest x=y", "Basic"]), Some(Challenge::Basic));
        assert_eq!(choose(["Digest x=y"]), None);
    }

    #[test]
    fn spaces_around_the_equals_sign_are_tolerated() {
        assert_eq!(
            parse("Bearer realm = \"https://t\" ,service= s"),
            [bearer("https://t", Some("s"), None)]
        );
    }

    #[test]
    fn a_bearer_challenge_needs_a_realm() {
        assert_eq!(parse("Bearer"), []);
        assert_eq!(parse(r#"Bearer service="x""#), []);
        assert_eq!(parse(r#"Bearer realm="""#), []);
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_not_believed() {
        assert_eq!(parse(r#"Bearer realm="https://t"#), []);
        assert_eq!(parse(r#"Bearer realm="https://t\"#), []);
        assert_eq!(parse(&format!("Bearer realm={}", "x".repeat(VALUE_BYTES_MAX))), []);
        assert_eq!(parse("Bearer realm=x,= =,"), [bearer("x", None, None)]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_run_on(
            text in ".{0,200}",
            likely in r#"((Bearer|Basic|realm|scope|[a-z]{1,3}|=|,| |"|\\|é){0,40})"#,
        ) {
            prop_assert!(parse(&text).len() <= CHALLENGES_MAX);
            prop_assert!(parse(&likely).len() <= CHALLENGES_MAX);
        }

        #[test]
        fn any_value_survives_being_quoted(realm in "[ -~]{1,60}", scope in "[ -~]{1,60}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let value = format!("Bearer realm=\"{}\",scope=\"{}\"", quote(&realm), quote(&scope));
            prop_assert_eq!(parse(&value), [bearer(&realm, None, Some(&scope))]);
        }
    }
}
