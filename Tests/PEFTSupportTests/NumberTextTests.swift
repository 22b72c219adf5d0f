import Testing

@testable import PEFTSupport

/// Numbers as people read them. Expected texts are the definitions.
struct NumberTextTests {
  @Test func fixedDecimals() {
    #expect(fixed(1.005, 2) == "1.00" && fixed(0.0449, 1) == "0.0" && fixed(-2.5, 0) == "-2")
    #expect(fixed(.nan, 2) == "nan" && fixed(-0.001, 2) == "0.00")
    #expect(fixed(0.88259, 4) == "0.8826" && fixed(0, 4) == "0.0000")
    #expect(fixed(100, 4) == "100.0000" && fixed(1.00004, 4) == "1.0000")
  }

  @Test func scientificForm() {
    #expect(scientific(1.25e-4) == "1.25e-04" && scientific(0) == "0.00e+00")
    #expect(scientific(9.999e-5) == "1.00e-04" && scientific(-12) == "-1.20e+01")
  }

  @Test func durations() {
    #expect(duration(59.4) == "59 s" && duration(185) == "3 min 05 s")
    #expect(duration(7800) == "2 h 10 min" && duration(.infinity) == "?")
  }

  @Test func groupsOfThreeDigits() {
    #expect(grouped(1_234_567) == "1,234,567" && grouped(-100) == "-100")
    #expect(grouped(0) == "0" && grouped(999) == "999" && grouped(1000) == "1,000")
    #expect(grouped(498_431_872) == "498,431,872")
  }
}
