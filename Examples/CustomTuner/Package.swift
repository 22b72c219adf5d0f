// swift-tools-version: 6.2
import PackageDescription

// A package of its own, as anybody's would be: it sees what swift-peft makes public and nothing else.
let package = Package(
  name: "custom-tuner",
  platforms: [.macOS(.v15)],
  products: [
    .library(name: "OutputScale", targets: ["OutputScale"])
  ],
  dependencies: [
    .package(name: "swift-peft", path: "../..")
  ],
  targets: [
    // The tuner needs the adapter core alone.
    .target(
      name: "OutputScale",
      dependencies: [.product(name: "PEFTCore", package: "swift-peft")],
      swiftSettings: [.swiftLanguageMode(.v6)]),
    // A program that uses it.
    .executableTarget(
      name: "custom-tuner",
      dependencies: ["OutputScale", .product(name: "PEFT", package: "swift-peft")],
      swiftSettings: [.swiftLanguageMode(.v6)]),
  ]
)
