//! Choosing tokens: against distributions computed apart, and at the edges.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft::pretrained::sampling::Sampler;

/// The probabilities after temperature and top-p, by their definition: of all sets of tokens whose probability reaches p,
/// the smallest (here without ties).
fn distribution(logits: &[f32], temperature: f64, top_p: f64) -> Vec<f64> {
    let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) / temperature).exp()).collect();
    let total: f64 = powers.iter().sum();
    let probabilities: Vec<f64> = powers.iter().map(|power| power / total).collect();
    let members = |set: usize| (0..logits.len()).filter(move |token| set >> token & 1 == 1);
    let sum = |set: usize| members(set).map(|token| probabilities[token]).sum::<f64>();
    let sets = (1..1_usize << logits.len()).filter(|&set| sum(set) >= top_p - 1e-12);
    let key = |set: usize| (set.count_ones(), -sum(set));
    let smallest = sets.min_by(|&a, &b| key(a).partial_cmp(&key(b)).unwrap()).unwrap();
    let mut kept = vec![0.0; logits.len()];
    members(smallest).for_each(|token| kept[token] = probabilities[token] / sum(smallest));
    kept
}

#[test]
fn draws_follow_their_distribution() {
    let logits = [0.3, -1.2, 2.0, 0.9, -0.4, 1.4];
    let draws = 20_000;
    for (seed, (temperature, top_p)) in
        [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.9), (1.0, 0.5), (0.7, 0.8), (1.5, 0.3)]
            .into_iter()
            .enumerate()
    {
        let expected = distribution(&logits, temperature, top_p);
        let mut sampler = Sampler::seeded(temperature, top_p, seed as u64).unwrap();
        let mut counts = [0_u32; 6];
        for _ in 0..draws {
            counts[sampler.choose(&logits).unwrap()] += 1;
        }
        let mut chi_square = 0.0;
        for (&count, probability) in counts.iter().zip(&expected) {
            let expected = probability * f64::from(draws);
            if expected == 0.0 {
                assert_eq!(count, 0, "{temperature} {top_p}: {counts:?}");
            } else {
                chi_square += (f64::from(count) - expected).powi(2) / expected;
            }
        }
        // The 0.999 quantile with five degrees of freedom; fewer tokens kept have a lower one.
        assert!(chi_square < 20.5, "{temperature} {top_p}: {chi_square} of {counts:?} for {expected:?}");
    }
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    // Probabilities 1/2, 1/4, 1/4: exactly reached is enough, and among equals the lower id is kept.
    let logits = [0.0, std::f32::consts::LN_2, 0.0];
    let drawn = |top_p: f64| {
        let mut sampler = Sampler::seeded(1.0, top_p, 7).unwrap();
        let tokens = (0..200).map(|_| sampler.choose(&logits).unwrap());
        tokens.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(drawn(f64::MIN_POSITIVE), [1]);
    assert_eq!(drawn(0.4999), [1]);
    assert_eq!(drawn(0.51), [0, 1]);
    assert_eq!(drawn(0.7499), [0, 1]);
    assert_eq!(drawn(0.76), [0, 1, 2]);
    assert_eq!(drawn(1.0), [0, 1, 2]);
    // Eight equal tokens, whose probabilities are exact: half of them are four.
    let mut sampler = Sampler::seeded(1.0, 0.5, 7).unwrap();
    let tokens: std::collections::BTreeSet<_> =
        (0..200).map(|_| sampler.choose(&[1.5; 8]).unwrap()).collect();
    assert_eq!(tokens.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let logits: Vec<f32> = (0..50).map(|token| (token as f32 * 0.7).sin()).collect();
    let tokens = |seed: u64| {
        let mut sampler = Sampler::seeded(0.8, 0.95, seed).unwrap();
        (0..12).map(|_| sampler.choose(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(1), tokens(2));
    // Written down, so that another machine, or another version of the generator, is noticed.
    assert_eq!(tokens(1), [21, 38, 28, 11, 2, 1, 39, 20, 27, 1, 39, 37]);
}

#[test]
fn extremes_stay_in_range() {
    assert_eq!(Sampler::greedy().choose(&[-3.0, -1.0, -1.0, -2.0]).unwrap(), 1);
    assert_eq!(Sampler::greedy().choose(&[0.0, -0.0]).unwrap(), 0);
    for temperature in [f64::MIN_POSITIVE, 1e-3, 1.0, f64::MAX] {
        let mut sampler = Sampler::seeded(temperature, 1.0, 3).unwrap();
        assert_eq!(sampler.choose(&[4.0]).unwrap(), 0);
        let token = sampler.choose(&[f32::MIN, f32::MAX, f32::MIN]).unwrap();
        assert!(token == 1 || temperature == f64::MAX, "{temperature}: {token}");
    }
    // As good as greedy.
    let mut cold = Sampler::seeded(1e-6, 1.0, 3).unwrap();
    assert!((0..100).all(|_| cold.choose(&[0.0, 0.1, 0.2, 0.1]).unwrap() == 2));
}

#[test]
fn what_cannot_be_drawn_from_is_refused() {
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = Sampler::seeded(temperature, 1.0, 0).map(|_| ()).unwrap_err().to_string();
        assert_eq!(message, format!("the temperature is {temperature}, expected a finite number above 0"));
    }
    for top_p in [0.0, -0.1, 1.1, f64::NAN] {
        let message = Sampler::seeded(1.0, top_p, 0).map(|_| ()).unwrap_err().to_string();
        assert_eq!(message, format!("top_p is {top_p}, expected more than 0 and at most 1"));
    }
    for mut sampler in [Sampler::greedy(), Sampler::seeded(1.0, 0.9, 0).unwrap()] {
        assert_eq!(
            sampler.choose(&[]).unwrap_err().to_string(),
            "there are no logits, expected one for each token"
        );
        for logit in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let message = sampler.choose(&[0.0, logit]).unwrap_err().to_string();
            assert_eq!(message, format!("the logit of token 1 is {logit}, expected a finite number"));
        }
    }
}
