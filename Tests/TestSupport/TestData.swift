#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Where the real models and data sets are that some tests need; none of them is in the repository.
public enum TestData {
  /// The path of a file or folder of the test data, or `nil`, with a notice, where it is absent.
  ///
  /// The data is at `PEFT_TEST_DATA`, else in `../shared/data` beside the package.
  public static func path(_ relative: String) -> String? {
    let path = "\(root)/\(relative)"
    if access(path, F_OK) == 0 { return path }
    print("skipped: no test data at \(path); set PEFT_TEST_DATA")
    return nil
  }

  private static var root: String {
    if let path = getenv("PEFT_TEST_DATA") { return String(cString: path) }
    // Tests/TestSupport/TestData.swift is three levels below the package.
    let package = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
    return "/\(package)/../shared/data"
  }
}
