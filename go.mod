module github.com/lighterman-dev/lighterman

go 1.26.0
