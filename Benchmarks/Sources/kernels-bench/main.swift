import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

// kernels-bench [section ...]: speed of the kernels for the shapes of MiniLM-L6 (450 packed tokens, width 384) and
// Qwen2-0.5B (width 896, 4864), beside what they replace. Threads: OMP_NUM_THREADS; instruction set: PEFT_ISA.

let sections: [(name: String, run: () -> Void)] = [
  ("gemm", benchmarkGEMM), ("lowrank", benchmarkLowRank), ("half", benchmarkHalfGEMM),
  ("gemv", benchmarkGEMV), ("attention", benchmarkAttention), ("elementwise", benchmarkElementwise),
  ("rows", benchmarkRows), ("decompositions", benchmarkDecompositions),
]

let wanted = CommandLine.arguments.dropFirst()
for name in wanted where !sections.contains(where: { $0.name == name }) {
  print("unknown section \(name); there are: \(sections.map(\.name).joined(separator: " "))")
  exit(1)
}
print("\(Parallel.threadCount) threads, \(InstructionSet.current)")
for section in sections where wanted.isEmpty || wanted.contains(section.name) {
  print("\n\(section.name)")
  section.run()
}
