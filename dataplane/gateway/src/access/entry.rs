//! A request at the door: who asks, whether they may, and what is told of it.

use http::{HeaderMap, StatusCode};
use outrider_artifact::{Digest, Reference, RepositoryName};
use outrider_tokens::{Actions, Target, TokenError};
use outrider_transport::{Peer, RequestBody};
use outrider_uplink::Target as Wanted;

use super::asker::Asker;
use super::audit::Line;
use super::gate::{AskedAt, Credential, Gate, Refusal, name_of, protocol_name};
use super::links::{Ask, Has};
use super::needs::Needs;
use crate::blobs::blob_unknown;
use crate::gateway::{Answer, Gateway, unix_ms};
use crate::names::Names;
use crate::protocol::route::Mount;
use crate::protocol::{ApiError, Operation, Request, conditional, header};
use crate::upstreams::Meaning;

impl<N: Names> Gateway<N> {
    /// Who asks, where they may do what they ask for. What they read is in the repository that they name.
    ///
    /// # Errors
    /// `UNAUTHORIZED` or `DENIED` with a challenge.
    pub(crate) async fn let_in(
        &self,
        request: &Request,
        http: &http::Request<RequestBody>,
        peer: Peer,
    ) -> Result<Asker, ApiError> {
        let Some(gate) = &self.gate else { return Ok(Asker::open()) };
        let peer = self.if_member(peer);
        let operation = &request.operation;
        let needs = Needs::of(operation);
        if needs == Needs::Nothing {
            return Ok(Asker::open());
        }
        let key = self.key_of(&needs, request);
        let scopes = || needs.scopes(&key, operation);
        let at = AskedAt { uri: http.uri(), headers: http.headers(), secure: peer.secure };
        let refused = |why: Refusal, asker: Option<&Asker>| {
            gate.count_refused(why);
            let scopes = scopes();
            let error = gate.error(why, asker, &scopes, &at);
            Note::of(gate, operation, asker, peer, &key).refused(why, error.status());
            error
        };
        let mut who = gate.who(http.headers(), peer);
        if let Err(Refusal::Token(TokenError::Key)) = who
            && let Ok(Some(credential)) = Credential::of(http.headers())
            && gate.await_keys(&credential).await
        {
            who = gate.who(http.headers(), peer);
        }
        let mut asker = who.map_err(|why| refused(why, None))?;
        if !asker.is_asked() {
            return Ok(asker);
        }
        match &needs {
            // Clients learn here how to log in, also where anybody may pull.
            Needs::Identity if !asker.is_proven() => return Err(refused(Refusal::Missing, None)),
            Needs::Anything => return Err(refused(Refusal::DigestAlone, Some(&asker))),
            _ => {}
        }
        if let Some((target, actions)) = needs.target(&key)
            && !gate.allows(&asker, target, actions)
        {
            let why = if asker.is_proven() { Refusal::Scope } else { Refusal::Missing };
            return Err(refused(why, Some(&asker)));
        }
        gate.count_for_owner(&mut asker, &key);
        if spoken_for(operation).is_some_and(|customer| customer != asker.name()) {
            return Err(refused(Refusal::Customer, Some(&asker)));
        }
        Ok(asker)
    }

    /// Whether the repository that is read has what is asked of it, for who is asked who they are.
    ///
    /// # Errors
    /// `BLOB_UNKNOWN` or `MANIFEST_UNKNOWN` for a digest that the repository does not have, whoever else has it; what
    /// the names or an upstream answer.
    pub(crate) async fn must_have(
        &self,
        request: &Request,
        headers: &HeaderMap,
        peer: Peer,
        asker: &Asker,
    ) -> Result<Option<Doubt>, ApiError> {
        let Some(gate) = &self.gate else { return Ok(None) };
        let Some((name, ns, target)) = read_of(request) else { return Ok(None) };
        let held_only = conditional::only_if_cached(headers);
        let ask = if held_only { Ask::Nobody } else { Ask::OfWhatIsHere };
        match self.has(name, ns, &target, ask).await? {
            Has::Yes => Ok(None),
            Has::IfFetched => {
                let (name, ns) = (name.clone(), ns.map(str::to_owned));
                Ok(Some(Doubt { name, ns, target }))
            }
            Has::No => {
                let unknown = unknown(name, &target);
                gate.count_refused(Refusal::NotLinked);
                let operation = &request.operation;
                let key = self.key_of(&Needs::of(operation), request);
                Note::of(gate, operation, Some(asker), peer, &key)
                    .refused(Refusal::NotLinked, unknown.status());
                Err(unknown)
            }
        }
    }

    /// An edge that was taken out of the fleet, or is not known yet, is nobody, whatever its certificate says.
    pub(crate) fn if_member(&self, peer: Peer) -> Peer {
        let member = peer.member.filter(|number| self.names.is_edge(*number));
        Peer { member, ..peer }
    }

    /// What the repository of a request is called in full: one repository has one name, however it is reached.
    fn key_of(&self, needs: &Needs<'_>, request: &Request) -> String {
        let Needs::Repository(name, _) = needs else { return String::new() };
        if let ns @ Some(_) = request.ns.as_deref()
            && let Meaning::Mirrored(place) = self.upstreams.resolve(name, ns)
        {
            return place.key.to_string();
        }
        name.to_string()
    }

    /// What was not here when it was asked for may have come for another request, or from another source that a flight
    /// turned to when the repository's own had nothing: unless the answer went straight from the repository's own
    /// to who asks, it is looked again where the content is from, and the repository is asked if it is from elsewhere.
    ///
    /// # Errors
    /// That of the answer; `BLOB_UNKNOWN` or `MANIFEST_UNKNOWN`; what the names or an upstream answer.
    pub(crate) async fn settle_doubt(&self, doubt: Doubt, answer: Answer) -> Answer {
        let response = answer?;
        let Doubt { name, ns, target } = doubt;
        if is_straight(response.headers(), &target) {
            return Ok(response);
        }
        match self.has(&name, ns.as_deref(), &target, Ask::Always).await? {
            Has::Yes => Ok(response),
            Has::No | Has::IfFetched => Err(unknown(&name, &target)),
        }
    }

    /// Whether a blob may be taken over from another repository: it is said from which, it may be read there, and
    /// that repository has it. Else, and while that cannot be said, it is uploaded as if nothing had been said of
    /// another one.
    pub(crate) async fn may_mount(&self, mount: &Mount, asker: &Asker) -> bool {
        if !asker.is_asked() {
            return true;
        }
        let Some(from) = &mount.from else { return false };
        if !asker.may(Target::Repository(from), Actions::PULL) {
            return false;
        }
        match self.has(from, None, &Wanted::Blob(mount.digest), Ask::OfWhatIsHere).await {
            Ok(has) => has == Has::Yes,
            Err(error) => {
                tracing::debug!(digest = %mount.digest, %from, "it is not mounted: {error}");
                false
            }
        }
    }

    /// What is to be told of an operation that changes something, once it is done.
    pub(crate) fn note_of(
        &self,
        operation: &Operation,
        asker: &Asker,
        peer: Peer,
    ) -> Option<Note<'_>> {
        let gate = self.gate.as_ref()?;
        let changes = match operation {
            Operation::ManifestPut { .. }
            | Operation::ManifestDelete { .. }
            | Operation::BlobDelete { .. }
            | Operation::UploadFinish { .. }
            | Operation::LayerUpload { .. } => true,
            Operation::UploadStart { digest, mount, .. } => digest.is_some() || mount.is_some(),
            _ => false,
        };
        changes.then(|| Note::of(gate, operation, Some(asker), peer, ""))
    }
}

/// What is told of one decision.
pub(crate) struct Note<'g> {
    gate: &'g Gate,
    action: &'static str,
    customer: Box<str>,
    repository: Option<String>,
    digest: Option<Digest>,
    reference: Option<String>,
    peer: Peer,
}

impl<'g> Note<'g> {
    fn of(
        gate: &'g Gate,
        operation: &Operation,
        asker: Option<&Asker>,
        peer: Peer,
        key: &str,
    ) -> Self {
        let (action, name, digest, reference) = about(operation);
        let repository = match name {
            Some(_) if !key.is_empty() => Some(key.to_owned()),
            name => name.map(|name| name.to_string()),
        };
        let (digest, customer) = (digest.copied(), name_of(asker).into());
        Self { gate, action, customer, repository, digest, reference, peer }
    }

    fn write(&self, outcome: &'static str, reason: &'static str, status: StatusCode) {
        self.gate.audit(&Line {
            unix_ms: unix_ms(),
            outcome,
            reason,
            action: self.action,
            customer: &self.customer,
            repository: self.repository.as_deref(),
            digest: self.digest.as_ref().map(Digest::to_string),
            reference: self.reference.as_deref(),
            scopes: None,
            status: status.as_u16(),
            remote: self.peer.address,
            protocol: protocol_name(self.peer.protocol),
        });
    }

    fn refused(&self, why: Refusal, status: StatusCode) {
        self.write("refused", why.name(), status);
    }

    /// It was granted, and this came of it.
    pub(crate) fn tell(&self, answer: &Answer) {
        let status = answer.as_ref().map_or_else(ApiError::status, http::Response::status);
        self.write("granted", "ok", status);
    }
}

/// What is asked for that was not here, so that it would be fetched from where it is asked for.
pub(crate) struct Doubt {
    name: RepositoryName,
    ns: Option<String>,
    target: Wanted,
}

/// Whether nobody else's request can have a part in an answer: a HEAD, a blob that is not kept, and a manifest, which
/// is fetched for one repository alone.
fn is_straight(headers: &HeaderMap, target: &Wanted) -> bool {
    let status = headers.get(header::CACHE_STATUS).map_or(&b""[..], |value| value.as_bytes());
    let says = |part: &[u8]| status.windows(part.len()).any(|window| window == part);
    says(b"; fwd=") && (matches!(target, Wanted::Manifest(_)) || !says(b"; stored"))
}

/// The repository and digest that a request reads.
fn read_of(request: &Request) -> Option<(&RepositoryName, Option<&str>, Wanted)> {
    let ns = request.ns.as_deref();
    match &request.operation {
        Operation::BlobRead { name, digest, .. } => Some((name, ns, Wanted::Blob(*digest))),
        Operation::LayerRequest { image: Some(name), digest, .. } => {
            Some((name, ns, Wanted::Blob(*digest)))
        }
        Operation::ManifestRead { name, reference: reference @ Reference::Digest(_), .. } => {
            Some((name, ns, Wanted::Manifest(reference.clone())))
        }
        _ => None,
    }
}

fn unknown(name: &RepositoryName, target: &Wanted) -> ApiError {
    match target {
        Wanted::Blob(digest) => blob_unknown(name, digest),
        Wanted::Manifest(reference) => crate::manifests::unknown(name, reference),
    }
}

/// The customer that a request says it is of.
fn spoken_for(operation: &Operation) -> Option<&str> {
    match operation {
        Operation::LayerUpload { customer, .. } | Operation::LayerRequest { customer, .. } => {
            customer.as_deref()
        }
        _ => None,
    }
}

/// What an operation does, to what.
fn about(
    operation: &Operation,
) -> (&'static str, Option<&RepositoryName>, Option<&Digest>, Option<String>) {
    match operation {
        Operation::Ping => ("login", None, None, None),
        Operation::Token { .. } => ("token", None, None, None),
        Operation::Catalog { .. } => ("catalog", None, None, None),
        Operation::TagsList { name, .. } => ("pull", Some(name), None, None),
        Operation::BlobRead { name, digest, .. } | Operation::Referrers { name, digest, .. } => {
            ("pull", Some(name), Some(digest), None)
        }
        Operation::ManifestRead { name, reference, .. } => {
            ("pull", Some(name), None, Some(reference.to_string()))
        }
        Operation::LayerRequest { image, digest, .. } => {
            ("pull", image.as_ref(), Some(digest), None)
        }
        Operation::ManifestPut { name, reference, .. } => {
            ("push", Some(name), None, Some(reference.to_string()))
        }
        Operation::UploadStart { name, digest, mount, .. } => {
            let digest = digest.as_ref().or(mount.as_ref().map(|mount| &mount.digest));
            ("push", Some(name), digest, None)
        }
        Operation::UploadFinish { name, digest, .. } => ("push", Some(name), Some(digest), None),
        Operation::UploadChunk { name, .. }
        | Operation::UploadStatus { name, .. }
        | Operation::UploadCancel { name, .. } => ("push", Some(name), None, None),
        Operation::LayerUpload { image, digest, version, .. } => {
            ("push", Some(image), digest.as_ref(), Some(version.to_string()))
        }
        Operation::ManifestDelete { name, reference } => {
            ("delete", Some(name), None, Some(reference.to_string()))
        }
        Operation::BlobDelete { name, digest } => ("delete", Some(name), Some(digest), None),
    }
}
