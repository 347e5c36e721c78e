//! The elementwise functions: arithmetic as code, for scalars and vectors alike, and which functions are the runtime's,
//! because their formulas are long. How exact they are is measured in `tests/math.rs`. Knows no loops.

use super::emit::{Emit, Width};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::ops::{Binary, Unary};
use engraft_runtime::abi::Function;

/// The runtime's function, if it is one of the runtime's: of many values at a time, at the width of the CPU.
pub(super) fn of_the_runtime(function: Unary) -> Option<Function> {
    match function {
        Unary::Exp => Some(Function::Exp),
        Unary::Tanh => Some(Function::Tanh),
        Unary::Sigmoid => Some(Function::Sigmoid),
        Unary::Silu => Some(Function::Silu),
        Unary::Gelu => Some(Function::Gelu),
        Unary::GeluTanh => Some(Function::GeluTanh),
        Unary::Sin => Some(Function::Sin),
        Unary::Cos => Some(Function::Cos),
        Unary::Neg | Unary::Sqrt | Unary::Rsqrt | Unary::Square | Unary::Relu => None,
    }
}

impl Emit<'_, '_> {
    /// A function of one value, if it is none of the runtime's.
    pub(super) fn unary(&mut self, function: Unary, width: Width, x: Value) -> Value {
        match function {
            Unary::Neg => self.negate(width, x),
            Unary::Sqrt => self.b.ins().sqrt(x),
            Unary::Rsqrt => {
                let root = self.b.ins().sqrt(x);
                self.reciprocal(width, root)
            }
            Unary::Square => self.mul(x, x),
            Unary::Relu => {
                let zero = self.number(width, 0.0);
                self.choose(FloatCC::LessThan, x, zero, zero, x)
            }
            Unary::Exp
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Silu
            | Unary::Gelu
            | Unary::GeluTanh
            | Unary::Sin
            | Unary::Cos => unreachable!("the runtime's functions are called, not emitted"),
        }
    }

    /// A function of two values.
    pub(super) fn binary(&mut self, function: Binary, a: Value, b: Value) -> Value {
        match function {
            Binary::Add => self.add(a, b),
            Binary::Sub => self.sub(a, b),
            Binary::Mul => self.mul(a, b),
            Binary::Div => self.div(a, b),
        }
    }

    /// `-x`. Vectors flip the sign with one number from memory; the instruction for it makes that number each time.
    fn negate(&mut self, width: Width, x: Value) -> Value {
        if width == Width::Scalar {
            return self.b.ins().fneg(x);
        }
        let (bits, sign) = (self.as_int(width, x), self.bits(width, i32::MIN));
        let bits = self.b.ins().bxor(bits, sign);
        self.as_float(width, bits)
    }

    pub(super) fn reciprocal(&mut self, width: Width, x: Value) -> Value {
        let one = self.number(width, 1.0);
        self.div(one, x)
    }
}
