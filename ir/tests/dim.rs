//! Dims are polynomials in a canonical form: equality is structural, evaluation respects sums and products, and what is
//! printed reads back.

use engraft_ir::{Bindings, DType, Dim, DimError, MAX_DIM, Shape, Symbol, TensorType, dims};
use engraft_testing::bindings;
use proptest::prelude::*;

fn arb_dim() -> impl Strategy<Value = Dim> {
    let leaf = prop_oneof![
        (0..5u64).prop_map(Dim::fixed),
        prop::sample::select(vec!["batch", "seq", "rank"]).prop_map(Dim::symbol),
    ];
    leaf.prop_recursive(3, 10, 2, |inner| {
        (inner.clone(), inner, any::<bool>()).prop_map(|(a, b, sum)| if sum { a + b } else { a * b })
    })
}

fn arb_bindings() -> impl Strategy<Value = Bindings> {
    (0..7u64, 0..7u64, 0..7u64).prop_map(|(b, s, r)| bindings(&[("batch", b), ("seq", s), ("rank", r)]))
}

proptest! {
    #[test]
    fn sums_and_products_obey_algebra(a in arb_dim(), b in arb_dim(), c in arb_dim()) {
        prop_assert_eq!(a.clone() + &b, b.clone() + &a);
        prop_assert_eq!(a.clone() * &b, b.clone() * &a);
        prop_assert_eq!((a.clone() + &b) + &c, a.clone() + (b.clone() + &c));
        prop_assert_eq!((a.clone() * &b) * &c, a.clone() * (b.clone() * &c));
        prop_assert_eq!(a.clone() * (b.clone() + &c), a.clone() * &b + a.clone() * &c);
        prop_assert_eq!(a.clone() + 0, a.clone());
        prop_assert_eq!(a.clone() * 1, a.clone());
        prop_assert_eq!(a.clone() * Dim::fixed(0), Dim::fixed(0));
        prop_assert_eq!((a.clone() + &b).checked_sub(&b), Some(a));
    }

    #[test]
    fn evaluation_respects_sums_and_products(a in arb_dim(), b in arb_dim(), at in arb_bindings()) {
        let (x, y) = (a.eval(&at).unwrap(), b.eval(&at).unwrap());
        prop_assert_eq!((a.clone() + &b).eval(&at), Ok(x + y));
        prop_assert_eq!((a * b).eval(&at), Ok(x * y));
    }

    #[test]
    fn what_is_printed_reads_back(dim in arb_dim()) {
        prop_assert_eq!(dim.to_string().parse::<Dim>(), Ok(dim.clone()));
        let json = serde_json::to_string(&dim).unwrap();
        prop_assert_eq!(serde_json::from_str::<Dim>(&json).unwrap(), dim.clone());
        let ty = TensorType::new(DType::F32, Shape::new(vec![dim.clone(), dim]));
        prop_assert_eq!(ty.to_string().parse::<TensorType>(), Ok(ty));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9+* \\[\\],]{0,20}") {
        let _ = text.parse::<Dim>();
        let _ = text.parse::<TensorType>();
    }
}

#[test]
fn forms() {
    assert_eq!((Dim::from("seq") * 2 + "batch" + 1).to_string(), "batch+2*seq+1");
    assert_eq!((Dim::from("b") * "a").to_string(), "a*b");
    assert_eq!(Dim::fixed(0).to_string(), "0");
    assert_eq!(" 2 * n + n*3 ".parse::<Dim>(), Ok(Dim::from("n") * 5));
    assert_eq!(Dim::from("n").as_symbol(), Some(&Symbol::new("n")));
    assert_eq!((Dim::from("n") * 2).as_symbol(), None);
    assert_eq!((Dim::from("n") + 1).as_fixed(), None);
    assert_eq!(Dim::fixed(3).checked_sub(&Dim::fixed(4)), None);
    assert_eq!(Dim::from("n").checked_sub(&Dim::fixed(1)), None);
}

#[test]
fn refusals() {
    for text in ["", "+", "n+", "2n", "n-1", "-1", "n n", "1.5", "n/2", "é", "99999999999999999999"] {
        assert!(matches!(text.parse::<Dim>(), Err(DimError::Syntax { .. })), "{text}");
    }
    for text in ["1099511627777", "1099511627776*2", "1000000000*1000000000*1000000000*n"] {
        assert!(matches!(text.parse::<Dim>(), Err(DimError::TooLarge { .. })), "{text}");
    }
    let many: Vec<_> = (0..40).map(|i| format!("n{i}")).collect();
    assert!(matches!(many.join("+").parse::<Dim>(), Err(DimError::TooLarge { .. })));
    assert!(matches!(many.join("*").parse::<Dim>(), Err(DimError::TooLarge { .. })));
    assert!(matches!("n+".repeat(10_000).parse::<Dim>(), Err(DimError::Syntax { text }) if text.len() <= 32));
    assert!(matches!(Dim::from(-1).check(), Err(DimError::TooLarge { .. })));
    assert!(matches!(Dim::from("a b").check(), Err(DimError::Name { .. })));
    assert_eq!(Dim::from("n").eval(&Bindings::new()), Err(DimError::Unbound { symbol: "n".to_owned() }));
    let huge = bindings(&[("n", u64::MAX)]);
    assert!(matches!((Dim::from("n") + 1).eval(&huge), Err(DimError::TooLarge { .. })));
    assert!(matches!((Dim::from("n") * 2).eval(&huge), Err(DimError::TooLarge { .. })));
    assert_eq!(dims!["n"].eval(&bindings(&[("n", MAX_DIM)])).map(|dims| dims.len()), Ok(1));
    assert!(dims!["n", 2].eval(&bindings(&[("n", MAX_DIM)])).is_err());
    for text in ["f32", "f16[2]", "f32[2", "f32 [2]", "f32[2]]", "[2]", "f32[2,,3]", "f32[1,1,1,1,1,1,1,1,1]"]
    {
        assert!(text.parse::<TensorType>().is_err(), "{text}");
    }
    assert_eq!("f32[ ]".parse::<TensorType>().map(|ty| ty.rank()), Ok(0));
}
