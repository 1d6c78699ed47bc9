//! From a request to the head of its answer: redirects, tokens, and one more try on a connection
//! that the upstream had already given up.
//!
//! Credentials go to the upstream's own scheme, host and port, and to the token service that it
//! names; the first step elsewhere drops them for good.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use outrider_artifact::RepositoryName;
use tokio::sync::watch;
use url::Url;

use crate::address::Reach;
use crate::challenge::{self, Challenge};
use crate::connect::{DialError, PeerClass};
use crate::error::{FetchError, TimeoutStage};
use crate::fetch::{ACCEPT_MAX, FetchMethod, FetchRequest, Target};
use crate::lane::lock;
use crate::redirect;
use crate::retry_after;
use crate::token::{ANSWER_BYTES_MAX, Token, parse_answer};
use crate::upstream::Upstream;

/// Who we say that we are.
const USER_AGENT_VALUE: &str = concat!("outrider/", env!("CARGO_PKG_VERSION"));

/// How many scopes of a challenge are passed on to the token service.
const SCOPES_MAX: usize = 8;

/// The longest text of a lower layer's error that is kept.
const REASON_BYTES_MAX: usize = 300;

/// An answer whose head is in, and who gave it.
struct Answer {
    response: Response<Incoming>,
    /// The upstream itself, not somebody whom it sent us to.
    from_home: bool,
    /// How far whoever answered may send us.
    reach: Reach,
}

/// What a request says about who is asking.
#[derive(Clone)]
enum Authorization {
    Nobody,
    Basic(HeaderValue),
    Bearer(Token),
}

impl Authorization {
    fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Nobody => None,
            Self::Basic(value) => Some(value.clone()),
            Self::Bearer(token) => Some(token.header()),
        }
    }
}

impl Upstream {
    /// Asks for something, and resolves with the head of the last answer, whatever its status.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        request: &FetchRequest,
    ) -> Result<Response<Incoming>, FetchError> {
        let url = self.url_of(request)?;
        let method = match request.method {
            FetchMethod::Get => Method::GET,
            FetchMethod::Head => Method::HEAD,
            // Edges are asked that, and no upstream.
            FetchMethod::Keep => return Err(FetchError::NotFound),
        };
        let headers = headers_of(request);
        let scope = format!("repository:{}:pull", request.repository);
        let known = self.known_authorization(&scope);
        let send = |authorization: Option<HeaderValue>| {
            self.send(&method, url.clone(), &headers, authorization, Reach::Public)
        };
        let answer = send(known.header()).await?;
        if answer.response.status() != 401 || !answer.from_home {
            return Ok(answer.response);
        }
        let values = answer.response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenge::choose(values.iter().filter_map(|value| value.to_str().ok()));
        let reach = answer.reach;
        // Dropped before the next request, so that its connection can carry that one.
        drop(answer);
        let authorization = match challenge {
            None => return Err(FetchError::Unauthorized),
            Some(Challenge::Basic) => {
                let value = self.credentials_header().await?;
                if matches!(&known, Authorization::Basic(refused) if *refused == value) {
                    // The same again would only count against the account.
                    return Err(FetchError::Unauthorized);
                }
                *lock(&self.basic) = Some(value.clone());
                Authorization::Basic(value)
            }
            Some(Challenge::Bearer { realm, service, scope: asked }) => {
                let refused = match &known {
                    Authorization::Bearer(token) => Some(token),
                    Authorization::Nobody | Authorization::Basic(_) => None,
                };
                let question = TokenQuestion { realm, service, asked, reach };
                Authorization::Bearer(self.token(&scope, refused, question).await?)
            }
        };
        Ok(send(authorization.header()).await?.response)
    }

    fn url_of(&self, request: &FetchRequest) -> Result<Url, FetchError> {
        // A name that is no repository's cannot be there, and must not reach into other paths.
        let repository: RepositoryName =
            request.repository.parse().map_err(|_| FetchError::NotFound)?;
        let path = match &request.target {
            Target::Manifest(reference) => format!("manifests/{reference}"),
            Target::Blob(digest) => format!("blobs/{digest}"),
        };
        let mut url = self.config.url.clone();
        let prefix = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{prefix}/v2/{repository}/{path}"));
        Ok(url)
    }

    /// What is known to work without being asked for it.
    fn known_authorization(&self, scope: &str) -> Authorization {
        if let Some(token) = lock(&self.tokens).get(scope, Instant::now()) {
            return Authorization::Bearer(token);
        }
        lock(&self.basic).clone().map_or(Authorization::Nobody, Authorization::Basic)
    }

    /// User and password as `Authorization`, if there are any.
    async fn credentials_header(&self) -> Result<HeaderValue, FetchError> {
        let credentials = self.credentials.clone().ok_or(FetchError::Unauthorized)?;
        let read = tokio::task::spawn_blocking(move || credentials.basic()).await;
        match read {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::warn!(upstream = %self.label, %error, "the password file cannot be read");
                Err(FetchError::Unauthorized)
            }
            Err(_) => Err(FetchError::Closed),
        }
    }

    /// Sends a request and follows redirects.
    async fn send(
        &self,
        method: &Method,
        url: Url,
        headers: &HeaderMap,
        mut authorization: Option<HeaderValue>,
        mut reach: Reach,
    ) -> Result<Answer, FetchError> {
        let mut visited = vec![url];
        loop {
            let url = &visited[visited.len() - 1];
            let response = self.send_once(method, url, headers, &authorization, reach).await?;
            let from_home = self.is_home(url);
            if from_home {
                reach = match response.extensions().get::<PeerClass>() {
                    Some(PeerClass(class)) => Reach::of_upstream(*class),
                    None => Reach::Public,
                };
            }
            if !redirect::is_redirect(response.status().as_u16()) {
                return Ok(Answer { response, from_home, reach });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = redirect::follow(&visited, location)?;
            if !redirect::same_origin(&next, url) {
                authorization = None;
            }
            visited.push(next);
        }
    }

    /// Sends a request over one connection, and once more over another when that one is lost
    /// before an answer: the server may have closed it while it was unused.
    async fn send_once(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: &Option<HeaderValue>,
        reach: Reach,
    ) -> Result<Response<Incoming>, FetchError> {
        let uri = Uri::try_from(url.as_str())
            .map_err(|_| FetchError::Redirect("a URL that cannot be asked for".to_owned()))?;
        let client = self.client(url, reach);
        let limit = self.config.connect_timeout + self.config.head_timeout;
        let deadline = tokio::time::Instant::now() + limit;
        let mut tries = 0;
        loop {
            tries += 1;
            let mut request = Request::new(Empty::<Bytes>::new());
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            if let Some(value) = authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            match tokio::time::timeout_at(deadline, client.request(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => match failure(&error) {
                    Failure::Lost(_) if tries == 1 => {}
                    Failure::Lost(error) | Failure::Final(error) => return Err(error),
                },
                Err(_) => return Err(FetchError::Timeout { stage: TimeoutStage::Head }),
            }
        }
    }
}

/// What a challenge says about the token that is wanted.
struct TokenQuestion {
    realm: String,
    service: Option<String>,
    asked: Option<String>,
    reach: Reach,
}

impl Upstream {
    /// A token for `scope` other than the `refused` one. Whoever asks while a request for it is
    /// under way waits for its answer.
    async fn token(
        self: &Arc<Self>,
        scope: &str,
        refused: Option<&Token>,
        question: TokenQuestion,
    ) -> Result<Token, FetchError> {
        {
            let mut tokens = lock(&self.tokens);
            if let Some(refused) = refused {
                tokens.refuse(scope, refused);
            }
            // Somebody else may have got one while our question was under way.
            if let Some(token) = tokens.get(scope, Instant::now()) {
                return Ok(token);
            }
        }
        let mut flight = {
            let mut flights = lock(&self.token_flights);
            match flights.get(scope) {
                Some(flight) => flight.clone(),
                None => {
                    let (answer, flight) = watch::channel(None);
                    flights.insert(scope.to_owned(), flight.clone());
                    let landing = Landing { upstream: Arc::clone(self), scope: scope.to_owned() };
                    // A task of its own: whoever asked first may lose interest.
                    tokio::spawn(async move {
                        let token = landing.upstream.request_token(&landing.scope, question).await;
                        // Off the table first, so that a failure is not handed out again later.
                        drop(landing);
                        answer.send_replace(Some(token));
                    });
                    flight
                }
            }
        };
        let answer = flight.wait_for(Option::is_some).await.map_err(|_| FetchError::Closed)?;
        answer.clone().unwrap_or(Err(FetchError::Closed))
    }

    async fn request_token(
        &self,
        scope: &str,
        question: TokenQuestion,
    ) -> Result<Token, FetchError> {
        let limit = self.config.connect_timeout + self.config.head_timeout;
        let asked = tokio::time::timeout(limit, self.ask_for_token(scope, &question)).await;
        let answer = asked.unwrap_or(Err(FetchError::Timeout { stage: TimeoutStage::Token }));
        let outcome = answer.as_ref().map_or_else(FetchError::reason, |_| "ok");
        self.metrics.token(&self.label, outcome);
        answer
    }

    async fn ask_for_token(
        &self,
        scope: &str,
        question: &TokenQuestion,
    ) -> Result<Token, FetchError> {
        let mut url = redirect::realm(&self.config.url, &question.realm)?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &question.service {
                query.append_pair("service", service);
            }
            let scopes = question.asked.as_deref().unwrap_or(scope);
            for scope in scopes.split_ascii_whitespace().take(SCOPES_MAX) {
                query.append_pair("scope", scope);
            }
        }
        let authorization = match &self.credentials {
            Some(_) => Some(self.credentials_header().await?),
            None => None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer = self.send(&Method::GET, url, &headers, authorization, question.reach).await?;
        let (head, body) = answer.response.into_parts();
        match head.status.as_u16() {
            200 => {}
            401 => return Err(FetchError::Unauthorized),
            403 => return Err(FetchError::Denied),
            status => {
                let retry_after = head
                    .headers
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok())
                    .and_then(|value| retry_after::parse(value, SystemTime::now()));
                return Err(match status {
                    429 => FetchError::RateLimited { retry_after },
                    408 | 500..=599 => FetchError::Unavailable { status, retry_after },
                    _ => protocol(format!("the token service's status is {status}")),
                });
            }
        }
        let body = match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(protocol(format!(
                    "the token service's answer is longer than {ANSWER_BYTES_MAX} bytes"
                )));
            }
            Err(error) => return Err(FetchError::Connect(reason(error.as_ref()))),
        };
        let answer = parse_answer(&body)
            .ok_or_else(|| protocol("the token service's answer holds no token"))?;
        lock(&self.tokens).put(scope, &answer, Instant::now());
        Ok(answer.token)
    }
}

/// Takes a request for a token off the table when it is over, however it ends.
struct Landing {
    upstream: Arc<Upstream>,
    scope: String,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.upstream.token_flights).remove(&self.scope);
    }
}

/// The headers of a request to the registry.
fn headers_of(request: &FetchRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let usable = |media_type: &&String| {
        !media_type.is_empty() && media_type.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    };
    let accept: Vec<_> =
        request.accept.iter().filter(usable).take(ACCEPT_MAX).map(String::as_str).collect();
    let accept = HeaderValue::try_from(accept.join(", ")).ok().filter(|value| !value.is_empty());
    headers.insert(ACCEPT, accept.unwrap_or(HeaderValue::from_static("*/*")));
    if let (FetchMethod::Get, Some(range)) = (request.method, request.range) {
        let last = range.last.map(|last| last.to_string()).unwrap_or_default();
        if let Ok(value) = HeaderValue::try_from(format!("bytes={}-{last}", range.first)) {
            headers.insert(RANGE, value);
        }
    }
    headers
}

/// Why a request has no answer.
enum Failure {
    /// The connection was lost on the way; another one may do better.
    Lost(FetchError),
    /// There is no point in trying again at once.
    Final(FetchError),
}

fn failure(error: &hyper_util::client::legacy::Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(dial) = cause.downcast_ref::<DialError>() {
            return Failure::Final(match dial {
                DialError::Timeout => FetchError::Timeout { stage: TimeoutStage::Connect },
                DialError::Refused { .. } => FetchError::Redirect(dial.to_string()),
                DialError::Budget => FetchError::Busy,
                DialError::Url | DialError::Lookup { .. } | DialError::Tcp { .. } => {
                    FetchError::Connect(dial.to_string())
                }
            });
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && http.is_parse()
        {
            return Failure::Final(protocol(format!("it is not HTTP: {http}")));
        }
        source = cause.source();
    }
    // What the client says on top of its cause is only that it failed.
    let lost = FetchError::Connect(error.source().map_or_else(|| reason(error), reason));
    if error.is_connect() { Failure::Final(lost) } else { Failure::Lost(lost) }
}

/// An error with its causes, bounded.
pub(crate) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some layers repeat their cause.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    if text.len() > REASON_BYTES_MAX {
        text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    }
    text
}

fn protocol(reason: impl Into<String>) -> FetchError {
    FetchError::Protocol(reason.into())
}
