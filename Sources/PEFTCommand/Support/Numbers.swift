/// An integer with commas between groups of three digits.
func grouped(_ number: Int) -> String {
  let digits = Array(String(number))
  var text = ""
  for (place, digit) in digits.enumerated() {
    if place > 0, (digits.count - place) % 3 == 0, digits[place - 1] != "-" { text.append(",") }
    text.append(digit)
  }
  return text
}

/// A number with a fixed count of decimals.
func fixed(_ number: Double, _ decimals: Int) -> String {
  guard number.isFinite, abs(number) < 1e12 else { return "\(number)" }
  var scale = 1
  for _ in 0..<decimals { scale *= 10 }
  let scaled = Int((abs(number) * Double(scale)).rounded())
  let fraction = String(scaled % scale)
  let padding = String(repeating: "0", count: decimals - fraction.count)
  let sign = number < 0 && scaled > 0 ? "-" : ""
  return sign + "\(scaled / scale)" + (decimals > 0 ? ".\(padding)\(fraction)" : "")
}

/// A number with so many significant digits, for errors and differences: `1.2e-06`.
func significant(_ number: Double, _ digits: Int = 2) -> String {
  guard number.isFinite, number != 0 else { return number == 0 ? "0" : "\(number)" }
  var exponent = 0
  var mantissa = abs(number)
  while mantissa >= 10 { (mantissa, exponent) = (mantissa / 10, exponent + 1) }
  while mantissa < 1 { (mantissa, exponent) = (mantissa * 10, exponent - 1) }
  var text = fixed(mantissa, digits - 1)
  if text.hasPrefix("10") { (text, exponent) = (fixed(mantissa / 10, digits - 1), exponent + 1) }
  let size = abs(exponent)
  return (number < 0 ? "-" : "") + text + "e" + (exponent < 0 ? "-" : "+")
    + (size < 10 ? "0" : "") + "\(size)"
}

/// A number of bytes in the unit that suits it.
func byteSize(_ count: Int) -> String {
  var size = Double(count)
  var unit = "bytes"
  for larger in ["kB", "MB", "GB"] where size >= 1000 { (size, unit) = (size / 1000, larger) }
  return unit == "bytes" ? "\(count) bytes" : "\(fixed(size, 1)) \(unit)"
}
