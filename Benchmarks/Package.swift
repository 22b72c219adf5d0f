// swift-tools-version: 6.2
import PackageDescription

let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let settings: [SwiftSetting] = [.swiftLanguageMode(.v6)]

let package = Package(
  name: "Benchmarks",
  platforms: [.macOS(.v15)],
  dependencies: [
    .package(name: "swift-peft", path: ".."),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
  ],
  targets: [
    .target(name: "BenchClock", swiftSettings: settings),
    .executableTarget(
      name: "kernels-bench",
      dependencies: ["BenchClock", .product(name: "BLASKernels", package: "swift-peft")],
      swiftSettings: settings),
    .executableTarget(
      name: "adapters-bench",
      dependencies: [
        "BenchClock", arguments, .product(name: "PEFT", package: "swift-peft"),
        .product(name: "BLASKernels", package: "swift-peft"),
      ],
      swiftSettings: settings),
    .executableTarget(
      name: "methods-bench",
      dependencies: ["BenchClock", arguments, .product(name: "PEFT", package: "swift-peft")],
      swiftSettings: settings),
  ]
)
