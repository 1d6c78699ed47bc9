//! Tokens of the registry's token specification: what a token service answers, and a bounded cache
//! of them. Pure; time is an argument. A token never appears in `Debug` or in an error.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use http::HeaderValue;
use serde::Deserialize;
use serde_json::Value;

/// The longest answer of a token service that is read.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The longest token that is used; more does not fit the header limits of common servers.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// How long a token lives when its service does not say so, by the specification.
const EXPIRES_IN: Duration = Duration::from_secs(60);

/// The longest that a token is kept, whatever its service says.
const EXPIRES_IN_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long before its end a token is no longer used, so that it does not expire on the way; at
/// most a quarter of its life.
const EXPIRES_EARLY: Duration = Duration::from_secs(10);

/// How many tokens are kept per upstream: one for each repository that was asked for lately.
pub const TOKENS_MAX: usize = 1024;

/// A token: the whole value of an `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// A token for `Authorization`; `None` for what could not stand there.
    fn bearer(token: &str) -> Option<Self> {
        let fits = !token.is_empty()
            && token.len() <= TOKEN_BYTES_MAX
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value = fits.then(|| HeaderValue::try_from(format!("Bearer {token}")).ok())??;
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// The value of `Authorization`.
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The answer of a token service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAnswer {
    /// The token.
    pub token: Token,
    /// How long it is good for, from now on.
    pub expires_in: Duration,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<Value>,
}

/// Reads the answer of a token service: JSON with `token` or `access_token`, and perhaps
/// `expires_in` in seconds. `None` when there is no usable token in it. `issued_at` is not looked
/// at: clocks differ, and a token that was just sent was just issued.
pub fn parse_answer(body: &[u8]) -> Option<TokenAnswer> {
    if body.len() > ANSWER_BYTES_MAX {
        return None;
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let text = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    let expires_in = match answer.expires_in.as_ref().and_then(Value::as_f64) {
        None => EXPIRES_IN,
        Some(seconds) => Duration::try_from_secs_f64(seconds.max(0.0))
            .unwrap_or(EXPIRES_IN_MAX)
            .min(EXPIRES_IN_MAX),
    };
    Some(TokenAnswer { token: Token::bearer(&text)?, expires_in })
}

struct Cached {
    token: Token,
    expires_at: Instant,
    used: u64,
}

/// The tokens of one upstream, by scope. The least recently used one makes room.
pub struct TokenCache {
    tokens: HashMap<String, Cached>,
    capacity: usize,
    uses: u64,
}

impl TokenCache {
    /// An empty cache of at most `capacity` tokens.
    pub fn new(capacity: usize) -> Self {
        Self { tokens: HashMap::new(), capacity, uses: 0 }
    }

    /// A token for this scope that is still good.
    pub fn get(&mut self, scope: &str, now: Instant) -> Option<Token> {
        let cached = self.tokens.get_mut(scope)?;
        if now >= cached.expires_at {
            self.tokens.remove(scope);
            return None;
        }
        self.uses += 1;
        cached.used = self.uses;
        Some(cached.token.clone())
    }

    /// Keeps a token. O(capacity) when the cache is full.
    pub fn put(&mut self, scope: &str, answer: &TokenAnswer, now: Instant) {
        let early = EXPIRES_EARLY.min(answer.expires_in / 4);
        let expires_at = now + (answer.expires_in - early);
        if expires_at <= now || self.capacity == 0 {
            return;
        }
        if self.tokens.len() >= self.capacity && !self.tokens.contains_key(scope) {
            let oldest = self.tokens.iter().min_by_key(|(_, cached)| cached.used);
            if let Some(oldest) = oldest.map(|(scope, _)| scope.clone()) {
                self.tokens.remove(&oldest);
            }
        }
        self.uses += 1;
        let cached = Cached { token: answer.token.clone(), expires_at, used: self.uses };
        self.tokens.insert(scope.to_owned(), cached);
    }

    /// Forgets a token that was refused, unless another one has taken its place meanwhile.
    pub fn refuse(&mut self, scope: &str, token: &Token) {
        if self.tokens.get(scope).is_some_and(|cached| cached.token == *token) {
            self.tokens.remove(scope);
        }
    }

    /// How many tokens are kept.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(token: &str, seconds: u64) -> TokenAnswer {
        let token = Token::bearer(token).unwrap();
        TokenAnswer { token, expires_in: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_token_comes_under_either_name() {
        let one = parse_answer(br#"{"token":"abc","expires_in":300,"issued_at":"x"}"#).unwrap();
        assert_eq!(one, answer("abc", 300));
        assert_eq!(one.token.header(), "Bearer abc");
        assert_eq!(parse_answer(br#"{"access_token":"abc"}"#).unwrap(), answer("abc", 60));
        assert_eq!(
            parse_answer(br#"{"token":"","access_token":"abc"}"#).unwrap(),
            answer("abc", 60)
        );
    }

    #[test]
    fn a_lifetime_that_makes_no_sense_is_bounded() {
        let life = |text: &str| {
            let body = format!(r#"{{"token":"t","expires_in":{text}}}"#);
            parse_answer(body.as_bytes()).unwrap().expires_in
        };
        assert_eq!(life("-5"), Duration::ZERO);
        assert_eq!(life("1e300"), EXPIRES_IN_MAX);
        assert_eq!(life("null"), EXPIRES_IN);
        assert_eq!(life("\"soon\""), EXPIRES_IN);
        assert_eq!(life("90.5"), Duration::from_millis(90_500));
    }

    #[test]
    fn what_could_not_stand_in_a_header_is_no_token() {
        for wrong in [
            &b""[..],
            b"<html>",
            b"{}",
            b"[]",
            br#"{"token":""}"#,
            br#"{"token":"a b"}"#,
            br#"{"token":"a\r\nX: y"}"#,
            br#"{"token":7}"#,
            br#"{"token":null}"#,
        ] {
            assert_eq!(parse_answer(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
        let long = format!(r#"{{"token":"{}"}}"#, "x".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(parse_answer(long.as_bytes()), None);
        let padded = format!(r#"{{"token":"x"{}}}"#, " ".repeat(ANSWER_BYTES_MAX));
        assert_eq!(parse_answer(padded.as_bytes()), None);
    }

    #[test]
    fn a_token_is_not_shown() {
        let text = format!("{:?}", answer("hunter2", 60));
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!format!("{:?}", answer("hunter2", 60).token.header()).contains("hunter2"));
    }

    #[test]
    fn a_token_is_used_until_shortly_before_its_end() {
        let now = Instant::now();
        let mut cache = TokenCache::new(4);
        cache.put("a", &answer("t", 60), now);
        assert!(cache.get("a", now + Duration::from_secs(49)).is_some());
        assert!(cache.get("a", now + Duration::from_secs(50)).is_none());
        assert!(cache.is_empty());
        cache.put("a", &answer("t", 4), now);
        assert!(cache.get("a", now + Duration::from_millis(2_999)).is_some());
        assert!(cache.get("a", now + Duration::from_secs(3)).is_none());
        cache.put("a", &answer("t", 0), now);
        assert!(cache.is_empty(), "it would not live to be used");
    }

    #[test]
    fn the_least_recently_used_token_makes_room() {
        let now = Instant::now();
        let mut cache = TokenCache::new(2);
        cache.put("a", &answer("1", 60), now);
        cache.put("b", &answer("2", 60), now);
        cache.get("a", now).unwrap();
        cache.put("c", &answer("3", 60), now);
        assert!(cache.get("b", now).is_none());
        assert!(cache.get("a", now).is_some() && cache.get("c", now).is_some());
    }

    #[test]
    fn refusing_an_old_token_leaves_the_new_one_alone() {
        let now = Instant::now();
        let mut cache = TokenCache::new(2);
        cache.put("a", &answer("new", 60), now);
        cache.refuse("a", &answer("old", 60).token);
        assert_eq!(cache.get("a", now), Some(answer("new", 60).token));
        cache.refuse("a", &answer("new", 60).token);
        assert!(cache.is_empty());
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_answer(&body);
        }

        #[test]
        fn the_cache_is_bounded_whatever_is_put(steps in proptest::collection::vec((0u8..20, 0u64..100), 0..200)) {
            let mut now = Instant::now();
            let mut cache = TokenCache::new(5);
            for (scope, seconds) in steps {
                cache.put(&scope.to_string(), &answer("t", seconds), now);
                prop_assert!(cache.len() <= 5);
                now += Duration::from_secs(seconds / 10);
                let _ = cache.get(&(scope / 2).to_string(), now);
            }
        }
    }
}
