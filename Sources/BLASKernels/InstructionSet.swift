import CKernels

/// The instruction sets that the kernels are compiled for.
public enum InstructionSet: Int, Sendable, CaseIterable, Comparable {
  /// Portable C on four lanes: SSE2 or NEON.
  case portable
  /// AVX2 with FMA and F16C.
  case avx2
  /// AVX-512 F, BW, DQ and VL.
  case avx512

  /// The best that this machine has and the environment variable `PEFT_ISA` allows.
  public static var supported: InstructionSet {
    InstructionSet(rawValue: Int(pk_isa_supported().rawValue))!
  }

  /// The one in use.
  public static var current: InstructionSet {
    InstructionSet(rawValue: Int(pk_isa_current().rawValue))!
  }

  /// The levels that this machine can run, lowest first.
  public static var available: [InstructionSet] { allCases.filter { $0 <= supported } }

  /// Chooses a level for all kernels of the process; for tests and benchmarks, not while kernels run.
  package static func limit(to level: InstructionSet) {
    pk_isa_limit(pk_isa(rawValue: UInt32(level.rawValue)))
  }

  /// Whether the processor multiplies bf16 in hardware, AVX-512 BF16.
  public static var hasBFloat16: Bool { pk_has_bf16() }

  /// Orders by ability.
  public static func < (a: InstructionSet, b: InstructionSet) -> Bool { a.rawValue < b.rawValue }
}
