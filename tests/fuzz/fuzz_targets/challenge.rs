//! What an upstream may send to be asked elsewhere: challenges, realms, redirects.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_uplink::{challenge, redirect};
use url::Url;

fuzz_target!(|text: &str| {
    let upstream = Url::parse("https://registry.example.com/").expect("a URL");
    let plain = Url::parse("http://127.0.0.1:5000/").expect("a URL");
    for known in challenge::parse(text) {
        if let challenge::Challenge::Bearer { realm, .. } = known {
            assert!(!realm.is_empty());
            if let Ok(realm) = redirect::realm(&upstream, &realm) {
                assert_eq!(realm.scheme(), "https");
            }
            if let Ok(realm) = redirect::realm(&plain, &realm)
                && realm.scheme() != "https"
            {
                assert_eq!((realm.scheme(), realm.host_str()), ("http", Some("127.0.0.1")));
            }
        }
    }
    challenge::choose(text.split('\n'));

    let mut visited = vec![upstream];
    for location in text.split('\n') {
        let Ok(next) = redirect::follow(&visited, Some(location)) else { break };
        assert_eq!(next.scheme(), "https", "never from https to anything else");
        assert!(!visited.contains(&next) && next.host_str().is_some());
        visited.push(next);
        assert!(visited.len() <= redirect::REDIRECTS_MAX + 1);
    }
});
