//! `GET /v1/customers?after=NAME&limit=N`, `GET|PUT|DELETE /v1/customers/NAME`, `GET|PUT /v1/weights` and
//! `POST /v1/invalidations`: what the caches of all edges go by. None of it has a version of its own: what is
//! written last holds.

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use outrider_state::request::{Customer, Invalidation, Weights};
use outrider_state::{Operation, Request as StateRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{Answer, Refusal, json_answer, refusal, written};
use super::{Admin, input, is_read};

/// The largest body.
const BODY_BYTES_MAX: usize = 16 << 10;

/// A customer in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CustomerJson {
    class: f64,
    #[serde(default)]
    guaranteed_bytes: u64,
    #[serde(default)]
    stored_bytes_max: u64,
    #[serde(default)]
    requests_per_second_max: u32,
    #[serde(default)]
    content_ttl_s: u32,
}

impl From<CustomerJson> for Customer {
    fn from(json: CustomerJson) -> Self {
        let CustomerJson {
            class,
            guaranteed_bytes,
            stored_bytes_max,
            requests_per_second_max,
            content_ttl_s,
        } = json;
        Self { class, guaranteed_bytes, stored_bytes_max, requests_per_second_max, content_ttl_s }
    }
}

impl From<&Customer> for CustomerJson {
    fn from(customer: &Customer) -> Self {
        let &Customer {
            class,
            guaranteed_bytes,
            stored_bytes_max,
            requests_per_second_max,
            content_ttl_s,
        } = customer;
        Self { class, guaranteed_bytes, stored_bytes_max, requests_per_second_max, content_ttl_s }
    }
}

/// The weights in JSON: all of them, so that none is forgotten.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightsJson {
    class: f64,
    frequency: f64,
    fetch: f64,
    execute: f64,
    depth: f64,
}

/// An invalidation in JSON: one of the three.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InvalidationJson {
    #[serde(default)]
    tag: Option<String>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    repository: Option<String>,
}

impl InvalidationJson {
    fn read(self) -> Result<Invalidation, &'static str> {
        match (self.tag, self.digest, self.repository) {
            (Some(name), None, None) => {
                let (repository, tag) =
                    name.rsplit_once(':').ok_or("a tag is written REPOSITORY:TAG")?;
                Ok(Invalidation::Tag { repository: repository.to_owned(), tag: tag.to_owned() })
            }
            (None, Some(digest), None) => Ok(Invalidation::Digest(digest)),
            (None, None, Some(repository)) => Ok(Invalidation::Repository(repository)),
            _ => Err("one of tag, digest, repository is wanted"),
        }
    }
}

/// What a watcher sees of a customer, and who asks for one.
pub(crate) fn customer_json(customer: &Customer) -> Value {
    json!(CustomerJson::from(customer))
}

/// Likewise the weights.
pub(crate) fn weights_json(weights: &Weights) -> Value {
    let &Weights { class, frequency, fetch, execute, depth } = weights;
    json!(WeightsJson { class, frequency, fetch, execute, depth })
}

/// Likewise an invalidation, as it is asked for.
pub(crate) fn invalidation_json(invalidation: &Invalidation) -> Value {
    match invalidation {
        Invalidation::Tag { .. } => json!({ "tag": invalidation.to_string() }),
        Invalidation::Digest(digest) => json!({ "digest": digest }),
        Invalidation::Repository(repository) => json!({ "repository": repository }),
    }
}

pub(crate) async fn list(admin: &Admin, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let [after, limit] = input::parameters(request, ["after", "limit"])?;
    let (after, limit) = (after.unwrap_or_default(), input::limit(limit)?);
    admin.consensus.read_barrier().await?;
    let (version, mut found) = admin.consensus.shared().look(|known| {
        let found = known.state.customers_after(&after).take(limit + 1);
        let found = found.map(|(name, customer)| {
            let mut row = customer_json(customer);
            row["name"] = json!(name);
            row
        });
        (known.state.version(), found.collect::<Vec<_>>())
    });
    let more = found.len() > limit;
    found.truncate(limit);
    let value = json!({ "version": version, "customers": found, "more": more });
    Ok(json_answer(StatusCode::OK, &value))
}

pub(crate) async fn answer(
    admin: &Admin,
    name: &str,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let name = input::name(name)?;
    if is_read(request.method()) {
        admin.consensus.read_barrier().await?;
        let found = admin.consensus.shared().look(|known| known.state.customer(&name).cloned());
        let missing = || refusal(StatusCode::NOT_FOUND, "there is no such customer");
        let customer = found.ok_or_else(missing)?;
        return Ok(json_answer(StatusCode::OK, &customer_json(&customer)));
    }
    let (head, body) = request.into_parts();
    input::no_condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let customer = match head.method == Method::PUT {
        true => Some(input::json::<CustomerJson>(admin, body, BODY_BYTES_MAX).await?.into()),
        false => None,
    };
    let request = StateRequest { id, operation: Operation::Customer { name, customer } };
    Ok(written(admin.consensus.write(request).await))
}

pub(crate) async fn weights(admin: &Admin, request: Request<Incoming>) -> Result<Answer, Refusal> {
    if is_read(request.method()) {
        admin.consensus.read_barrier().await?;
        let weights = admin.consensus.shared().look(|known| known.state.weights());
        return Ok(json_answer(StatusCode::OK, &weights_json(&weights)));
    }
    let (head, body) = request.into_parts();
    input::no_condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let WeightsJson { class, frequency, fetch, execute, depth } =
        input::json(admin, body, BODY_BYTES_MAX).await?;
    let weights = Weights { class, frequency, fetch, execute, depth };
    let request = StateRequest { id, operation: Operation::Weights(weights) };
    Ok(written(admin.consensus.write(request).await))
}

pub(crate) async fn invalidate(
    admin: &Admin,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    input::no_condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let what: InvalidationJson = input::json(admin, body, BODY_BYTES_MAX).await?;
    let what = what.read().map_err(|why| refusal(StatusCode::BAD_REQUEST, why))?;
    let request = StateRequest { id, operation: Operation::Invalidate(what) };
    Ok(written(admin.consensus.write(request).await))
}
