#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

extension Double {
  /// e to this power.
  var exponential: Double { exp(self) }
}
