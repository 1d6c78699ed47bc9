//! What each request of the API needs of an operator.

use http::Method;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use outrider_operators::{Needs, Refused};

use super::answer::{Answer, failure};
use super::is_read;
use super::route::Place;

pub(crate) fn needs(place: Place, method: &Method) -> Needs {
    match place {
        Place::Health | Place::Ready => Needs::Nothing,
        Place::ClusterToken | Place::ClusterLeave | Place::ClusterRemove => Needs::Admin,
        _ if is_read(method) => Needs::Read,
        _ => Needs::Write,
    }
}

pub(crate) fn refused(refused: &Refused) -> Box<Answer> {
    let mut answer = failure(refused.status, &refused.why);
    let challenge = HeaderValue::from_static(refused.challenge);
    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    Box::new(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_cluster_needs_more_than_what_changes_the_state() {
        assert_eq!(needs(Place::Health, &Method::GET), Needs::Nothing);
        assert_eq!(needs(Place::Fragment, &Method::HEAD), Needs::Read);
        assert_eq!(needs(Place::Fragment, &Method::PUT), Needs::Write);
        assert_eq!(needs(Place::Batch, &Method::POST), Needs::Write);
        assert_eq!(needs(Place::ClusterToken, &Method::POST), Needs::Admin);
    }
}
