//! The query of a request: bounded, decoded, each parameter once.

use std::borrow::Cow;

use http::StatusCode;

use super::error::{ApiError, Code};

/// The longest query, in bytes. Ten tags of 128 bytes, a sha512 digest and two names need 2 KiB.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;

/// The most parameters of one query.
pub(crate) const QUERY_PARAMETERS_MAX: usize = 32;

/// The parameters of one request, decoded.
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Takes apart what stands behind the question mark. Allocates only if there is something.
    pub(crate) fn parse(query: Option<&'a str>) -> Result<Self, ApiError> {
        let Some(query) = query else { return Ok(Self(Vec::new())) };
        if query.len() > QUERY_BYTES_MAX {
            return Err(too_long(format!(
                "the query has {} bytes; {QUERY_BYTES_MAX} are taken",
                query.len()
            )));
        }
        let mut parameters = Vec::new();
        for pair in form_urlencoded::parse(query.as_bytes()) {
            if parameters.len() == QUERY_PARAMETERS_MAX {
                return Err(too_long(format!(
                    "the query has more than {QUERY_PARAMETERS_MAX} parameters"
                )));
            }
            parameters.push(pair);
        }
        Ok(Self(parameters))
    }

    /// The value of a parameter that may stand there once. Twice is refused: two readers of one
    /// request could take one each.
    pub(crate) fn one(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() {
            let message = format!("the parameter {name} stands twice in the query; give it once");
            return Err(
                ApiError::new(Code::Unsupported, message).with_status(StatusCode::BAD_REQUEST)
            );
        }
        Ok(first)
    }

    /// The values of a parameter that may stand there several times, in order.
    pub(crate) fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }
}

pub(crate) fn too_long(message: String) -> ApiError {
    ApiError::new(Code::Unsupported, message).with_status(StatusCode::URI_TOO_LONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_found_by_name() {
        let query = Query::parse(Some("digest=sha256%3Aab&from=a%2Fb&tag=x&tag=y&empty=")).unwrap();
        assert_eq!(query.one("digest").unwrap(), Some("sha256:ab"));
        assert_eq!(query.one("from").unwrap(), Some("a/b"));
        assert_eq!(query.one("empty").unwrap(), Some(""));
        assert_eq!(query.one("missing").unwrap(), None);
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn a_parameter_that_stands_twice_is_refused() {
        let query = Query::parse(Some("digest=a&digest=b")).unwrap();
        assert_eq!(query.one("digest").unwrap_err().status(), 400);
    }

    #[test]
    fn long_queries_are_refused() {
        let long = "a".repeat(QUERY_BYTES_MAX + 1);
        assert_eq!(Query::parse(Some(&long)).err().unwrap().status(), 414);
        let many = "a&".repeat(QUERY_PARAMETERS_MAX + 1);
        assert_eq!(Query::parse(Some(&many)).err().unwrap().status(), 414);
        assert!(Query::parse(Some(&"a&".repeat(QUERY_PARAMETERS_MAX))).is_ok());
        assert!(Query::parse(None).is_ok());
    }
}
