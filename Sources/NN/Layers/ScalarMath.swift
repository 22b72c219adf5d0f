#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

extension Float {
  /// Self to a power.
  func power(_ exponent: Float) -> Float { Float(pow(Double(self), Double(exponent))) }
}

extension Double {
  var cosine: Double { cos(self) }
  var sine: Double { sin(self) }
}
