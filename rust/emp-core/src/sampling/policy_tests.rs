use super::*;
use proptest::prelude::*;

const SECOND_NS: i64 = 1_000_000_000;
const HALF: u64 = 1 << 55;

const FACTS: TraceFacts = TraceFacts { is_error: false, duration_ns: 0, matched: 0, spans: 1, randomness: 0 };

fn policies(json: &str) -> Result<Policies, CoreError> {
    Policies::new(&serde_json::from_str::<Vec<PolicyConfig>>(json).unwrap())
}

/// The threshold of the policies' verdict, as `th` says it: "-" where it cannot be told, "" where the trace is dropped.
fn verdict(policies: &mut Policies, facts: TraceFacts) -> (Option<usize>, String) {
    match policies.decide(&facts, 0) {
        None => (None, String::new()),
        Some(Kept { policy, threshold: None }) => (Some(policy), "-".to_owned()),
        Some(Kept { policy, threshold: Some(threshold) }) => {
            let mut out = Vec::new();
            threshold.write(&mut out);
            (Some(policy), String::from_utf8(out).unwrap())
        }
    }
}

fn of(json: &str, facts: TraceFacts) -> String {
    verdict(&mut policies(json).unwrap(), facts).1
}

#[test]
fn each_policy_keeps_what_it_is_for() {
    let error = TraceFacts { is_error: true, ..FACTS };
    assert_eq!(of(r#"[{"name": "a", "type": "always"}]"#, FACTS), "0");
    assert_eq!(of(r#"[{"name": "a", "type": "error"}]"#, error), "0");
    assert_eq!(of(r#"[{"name": "a", "type": "error"}]"#, FACTS), "");
    for (duration_ns, kept) in [(4, ""), (5, "0"), (9, "0"), (10, "")] {
        let facts = TraceFacts { duration_ns, ..FACTS };
        assert_eq!(of(r#"[{"name": "a", "type": "slow", "min_duration_ns": 5, "max_duration_ns": 9}]"#, facts), kept, "{duration_ns} ns");
    }
    let attribute = r#"[{"name": "a", "type": "attribute", "key": "x"}, {"name": "b", "type": "attribute", "key": "y"}]"#;
    assert_eq!(verdict(&mut policies(attribute).unwrap(), TraceFacts { matched: 2, ..FACTS }), (Some(1), "0".to_owned()));
    assert_eq!(of(attribute, FACTS), "");
    for (randomness, kept) in [(HALF - 1, ""), (HALF, "8")] {
        assert_eq!(of(r#"[{"name": "a", "type": "probability", "percent": 50}]"#, TraceFacts { randomness, ..FACTS }), kept);
    }
}

#[test]
fn a_rate_limit_counts_spans_or_traces_and_says_no_threshold() {
    let mut per_trace = policies(r#"[{"name": "a", "type": "rate_limit", "traces_per_s": 3}]"#).unwrap();
    let kept = |policies: &mut Policies, second: i64, spans| {
        (0..10).filter(|_| policies.decide(&TraceFacts { spans, ..FACTS }, second * SECOND_NS).is_some()).count()
    };
    assert_eq!((kept(&mut per_trace, 0, 100), kept(&mut per_trace, 1, 1)), (3, 3));
    let mut per_span = policies(r#"[{"name": "a", "type": "rate_limit", "spans_per_s": 12}]"#).unwrap();
    assert_eq!((kept(&mut per_span, 0, 4), kept(&mut per_span, 1, 2)), (3, 6));
    assert_eq!(per_span.decide(&FACTS, 9 * SECOND_NS).unwrap().threshold, None);
}

#[test]
fn policies_are_joined_with_and_or_and_not() {
    let json = |kind: &str| {
        format!(
            r#"[{{"name": "a", "type": "{kind}", "policies": [
                {{"type": "error"}}, {{"type": "not", "policy": {{"type": "slow", "min_duration_ns": 5}}}}]}}]"#
        )
    };
    for (is_error, duration_ns, and, or) in [(true, 0, "0", "0"), (true, 5, "", "0"), (false, 0, "", "0"), (false, 5, "", "")] {
        let facts = TraceFacts { is_error, duration_ns, ..FACTS };
        assert_eq!((of(&json("and"), facts), of(&json("or"), facts)), (and.to_owned(), or.to_owned()), "{facts:?}");
    }
}

#[test]
fn the_threshold_of_and_is_the_highest_of_its_parts_and_not_of_chance_has_none() {
    let facts = TraceFacts { is_error: true, randomness: u64::MAX >> 8, ..FACTS };
    let and = r#"[{"name": "a", "type": "and", "policies": [
        {"type": "probability", "percent": 50}, {"type": "error"}, {"type": "probability", "percent": 25}]}]"#;
    assert_eq!(of(and, facts), "c");
    let limited = r#"[{"name": "a", "type": "and", "policies": [{"type": "error"}, {"type": "rate_limit", "traces_per_s": 1}]}]"#;
    assert_eq!(of(limited, facts), "-");
    let not = r#"[{"name": "a", "type": "not", "policy": {"type": "probability", "percent": 50}}]"#;
    assert_eq!(of(not, FACTS), "-");
    assert_eq!(of(not, facts), "");
}

#[test]
fn the_first_policy_that_matches_is_the_reason_and_the_lowest_threshold_the_chance() {
    let mut policies = policies(
        r#"[{"name": "rate", "type": "rate_limit", "traces_per_s": 1}, {"name": "half", "type": "probability", "percent": 50},
            {"name": "errors", "type": "error"}]"#,
    )
    .unwrap();
    let (high, error) = (TraceFacts { randomness: HALF, ..FACTS }, TraceFacts { randomness: HALF, is_error: true, ..FACTS });
    assert_eq!(verdict(&mut policies, high), (Some(0), "8".to_owned()), "the rate's first; that half would have kept it counts");
    assert_eq!(verdict(&mut policies, high), (Some(1), "8".to_owned()));
    assert_eq!(verdict(&mut policies, error), (Some(1), "0".to_owned()));
    assert_eq!(verdict(&mut policies, FACTS), (None, String::new()));
}

#[test]
fn what_another_policy_keeps_takes_nothing_from_a_rate_limit() {
    let mut policies = policies(
        r#"[{"name": "errors", "type": "error"}, {"name": "few", "type": "and", "policies": [
            {"type": "rate_limit", "traces_per_s": 1}, {"type": "slow", "min_duration_ns": 5}]}]"#,
    )
    .unwrap();
    for facts in [TraceFacts { is_error: true, duration_ns: 9, ..FACTS }, FACTS] {
        for _ in 0..5 {
            policies.decide(&facts, 0);
        }
    }
    assert_eq!(policies.decide(&TraceFacts { duration_ns: 9, ..FACTS }, 0).map(|kept| kept.policy), Some(1));
}

#[test]
fn policies_that_make_no_sense_are_refused_by_name() {
    let deep = format!(
        r#"[{{"name": "deep", "type": "always"}}, {{"name": "x", {}"type": "always"{}]"#,
        r#""type": "not", "policy": {"#.repeat(9),
        "}".repeat(10)
    );
    let many = format!(r#"[{{"name": "x", "type": "or", "policies": [{}]}}]"#, vec![r#"{"type": "always"}"#; 300].join(","));
    let leaves =
        format!(r#"[{{"name": "x", "type": "or", "policies": [{}]}}]"#, vec![r#"{"type": "attribute", "key": "k"}"#; 33].join(","));
    for json in [
        r#"[{"name": "x", "type": "probability", "percent": 101}]"#,
        r#"[{"name": "x", "type": "rate_limit"}]"#,
        r#"[{"name": "x", "type": "rate_limit", "spans_per_s": 1, "traces_per_s": 1}]"#,
        r#"[{"name": "x", "type": "rate_limit", "spans_per_s": 0}]"#,
        r#"[{"name": "x", "type": "and", "policies": []}]"#,
        r#"[{"name": "x", "type": "attribute", "key": ""}]"#,
        r#"[{"name": "x", "type": "always"}, {"name": "x", "type": "always"}]"#,
        &deep,
        &many,
        &leaves,
    ] {
        let error = policies(json).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ConfigInvalid);
        assert!(error.detail.contains("\"x\""), "{}", error.detail);
    }
    assert!(policies(r#"[{"type": "always"}]"#).is_err(), "a policy without a name cannot be counted");
}

proptest! {
    #[test]
    fn what_a_smaller_percentage_keeps_a_larger_one_keeps_too(a in 0.0..100.0f64, b in 0.0..100.0f64, randomness in 0..1u64 << 56) {
        let of = |percent: f64| of(
            &format!(r#"[{{"name": "a", "type": "probability", "percent": {percent}}}]"#), TraceFacts { randomness, ..FACTS });
        prop_assert!(of(a.min(b)).is_empty() || !of(a.max(b)).is_empty());
    }
}
