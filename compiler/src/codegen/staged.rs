//! A loop's body, cut where it takes a function of the runtime's: what is computed before each, from loads and from what
//! the functions before it gave, and what is computed of all of them in the end. Emits nothing.

use super::math;
use crate::plan::kernel::{Expr, Loop};
use engraft_runtime::abi::Function;

/// A function of the runtime's, and what gives its argument: values of which the last is it.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    pub(super) function: Function,
    pub(super) argument: Vec<Expr>,
}

/// The parts of a body. In each, the accesses that follow those of the loop's reads are the results of the calls.
#[derive(Debug, PartialEq)]
pub(super) struct Staged {
    /// The functions in their order.
    pub(super) calls: Vec<Call>,
    /// The values of which the last is the loop's.
    pub(super) rest: Vec<Expr>,
}

impl Staged {
    pub(super) fn of(body: &Loop) -> Self {
        let (mut results, mut calls) = (vec![None; body.body.len()], Vec::new());
        for (index, expr) in body.body.iter().enumerate() {
            if let Some((function, x)) = call(expr) {
                calls.push(Call { function, argument: part(&body.body, &results, x) });
                results[index] = Some(Expr::Load(body.reads.len() + calls.len() - 1));
            }
        }
        Self { calls, rest: part(&body.body, &results, body.body.len() - 1) }
    }
}

/// Whether the loop calls functions of the runtime's.
pub(super) fn has_calls(body: &Loop) -> bool {
    body.body.iter().any(|expr| call(expr).is_some())
}

fn call(expr: &Expr) -> Option<(Function, usize)> {
    match *expr {
        Expr::Unary(function, x) => math::of_the_runtime(function).map(|function| (function, x)),
        Expr::Load(_) | Expr::Number(_) | Expr::Binary(..) => None,
    }
}

/// The values that one of them needs, itself the last. Those that are results are loaded, the others computed again:
/// they take no time worth keeping them.
fn part(body: &[Expr], results: &[Option<Expr>], value: usize) -> Vec<Expr> {
    let mut is_needed = vec![false; value + 1];
    is_needed[value] = true;
    for index in (0..=value).rev().filter(|&index| results[index].is_none()) {
        if is_needed[index] {
            operands(&body[index]).into_iter().flatten().for_each(|operand| is_needed[operand] = true);
        }
    }
    let (mut part, mut places) = (Vec::new(), vec![0; value + 1]);
    for index in (0..=value).filter(|&index| is_needed[index]) {
        places[index] = part.len();
        part.push(match (results[index], body[index]) {
            (Some(result), _) => result,
            (None, Expr::Unary(function, x)) => Expr::Unary(function, places[x]),
            (None, Expr::Binary(function, a, b)) => Expr::Binary(function, places[a], places[b]),
            (None, leaf @ (Expr::Load(_) | Expr::Number(_))) => leaf,
        });
    }
    part
}

fn operands(expr: &Expr) -> [Option<usize>; 2] {
    match *expr {
        Expr::Load(_) | Expr::Number(_) => [None, None],
        Expr::Unary(_, x) => [Some(x), None],
        Expr::Binary(_, a, b) => [Some(a), Some(b)],
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, Staged, has_calls};
    use crate::plan::kernel::{Access, Expr, Loop};
    use engraft_ir::ops::{Binary, Unary};
    use engraft_ir::{DType, Dim};
    use engraft_runtime::abi::Function;

    /// A loop with two reads.
    fn body(body: &[Expr]) -> Loop {
        let access = Access { strides: vec![Dim::fixed(1)], offset: Dim::fixed(0) };
        let reads = vec![access.clone(), access.clone()];
        Loop { space: vec![Dim::fixed(9)], dtype: DType::F32, reads, write: access, body: body.to_vec() }
    }

    #[test]
    fn without_functions_of_the_runtime_all_is_the_rest() {
        let sum = body(&[Expr::Load(0), Expr::Load(1), Expr::Binary(Binary::Add, 1, 0)]);
        assert!(!has_calls(&sum));
        assert_eq!(Staged::of(&sum), Staged { calls: Vec::new(), rest: sum.body });
    }

    /// `silu(2 x) · y + x`
    #[test]
    fn what_is_used_before_and_after_is_computed_in_both() {
        let gate = body(&[
            Expr::Load(0),
            Expr::Number(2.0),
            Expr::Binary(Binary::Mul, 0, 1),
            Expr::Unary(Unary::Silu, 2),
            Expr::Load(1),
            Expr::Binary(Binary::Mul, 3, 4),
            Expr::Binary(Binary::Add, 5, 0),
        ]);
        assert!(has_calls(&gate));
        let argument = gate.body[..3].to_vec();
        let rest = vec![
            Expr::Load(0),
            Expr::Load(2),
            Expr::Load(1),
            Expr::Binary(Binary::Mul, 1, 2),
            Expr::Binary(Binary::Add, 3, 0),
        ];
        assert_eq!(
            Staged::of(&gate),
            Staged { calls: vec![Call { function: Function::Silu, argument }], rest }
        );
    }

    /// `exp(√sin(x))`
    #[test]
    fn functions_of_functions_are_loads_of_their_results() {
        let chain = body(&[
            Expr::Load(0),
            Expr::Unary(Unary::Sin, 0),
            Expr::Unary(Unary::Sqrt, 1),
            Expr::Unary(Unary::Exp, 2),
        ]);
        let root = vec![Expr::Load(2), Expr::Unary(Unary::Sqrt, 0)];
        let calls = vec![
            Call { function: Function::Sin, argument: vec![Expr::Load(0)] },
            Call { function: Function::Exp, argument: root },
        ];
        assert_eq!(Staged::of(&chain), Staged { calls, rest: vec![Expr::Load(3)] });
    }
}
