/// A number with a fixed count of decimals.
package func fixed(_ number: Double, _ digits: Int) -> String {
  guard number.isFinite else { return number.isNaN ? "nan" : number < 0 ? "-inf" : "inf" }
  var scale = 1.0
  for _ in 0..<digits { scale *= 10 }
  let scaled = (abs(number) * scale).rounded(.toNearestOrEven)
  // Beyond this a fraction has no meaning anyway.
  guard scaled < 1e15 else { return "\(number)" }
  let whole = Int(scaled) / Int(scale)
  let sign = number < 0 && scaled > 0 ? "-" : ""
  guard digits > 0 else { return "\(sign)\(whole)" }
  let fraction = String(Int(scaled) % Int(scale))
  return "\(sign)\(whole).\(String(repeating: "0", count: digits - fraction.count))\(fraction)"
}

/// A number in scientific form with two decimals, "1.25e-04".
package func scientific(_ number: Double) -> String {
  guard number.isFinite, number != 0 else { return number == 0 ? "0.00e+00" : fixed(number, 2) }
  var exponent = 0
  var mantissa = abs(number)
  while mantissa >= 10 {
    mantissa /= 10
    exponent += 1
  }
  while mantissa < 1 {
    mantissa *= 10
    exponent -= 1
  }
  if fixed(mantissa, 2) == "10.00" {
    mantissa = 1
    exponent += 1
  }
  let digits = String(abs(exponent))
  let sign = exponent < 0 ? "-" : "+"
  return (number < 0 ? "-" : "") + fixed(mantissa, 2) + "e" + sign
    + (digits.count < 2 ? "0" : "") + digits
}

/// A time as people read it: "8 s", "3 min 05 s", "2 h 10 min".
package func duration(_ seconds: Double) -> String {
  guard seconds.isFinite, seconds < 1e9 else { return "?" }
  let total = Int(seconds.rounded())
  func padded(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
  if total < 60 { return "\(total) s" }
  if total < 3600 { return "\(total / 60) min \(padded(total % 60)) s" }
  return "\(total / 3600) h \(padded(total / 60 % 60)) min"
}

/// An integer with commas between groups of three digits.
package func grouped(_ number: Int) -> String {
  var text = ""
  for (offset, digit) in String(abs(number)).reversed().enumerated() {
    if offset > 0, offset % 3 == 0 { text.append(",") }
    text.append(digit)
  }
  return (number < 0 ? "-" : "") + String(text.reversed())
}
