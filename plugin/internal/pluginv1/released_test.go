package pluginv1

import (
	"os"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestReleasedProtocolIsKept: every service, message, field and value of the released protocol is
// still there, with its number and type. `buf breaking` (task proto) checks more.
func TestReleasedProtocolIsKept(t *testing.T) {
	b, err := os.ReadFile("../../proto/released.binpb")
	if err != nil {
		t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &set); err != nil {
		t.Fatal(err)
	}
	released, err := protodesc.NewFiles(&set)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	released.RangeFilesByPackage("tanist.plugin.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				n += same(t, m, func(now protoreflect.Descriptor) bool {
					now2 := now.(protoreflect.MethodDescriptor)
					return now2.Input().FullName() == m.Input().FullName() && now2.Output().FullName() == m.Output().FullName() && now2.IsStreamingServer() == m.IsStreamingServer()
				})
			}
		}
		for i := range f.Messages().Len() {
			for j := range f.Messages().Get(i).Fields().Len() {
				m := f.Messages().Get(i).Fields().Get(j)
				n += same(t, m, func(now protoreflect.Descriptor) bool {
					now2 := now.(protoreflect.FieldDescriptor)
					return now2.Number() == m.Number() && now2.Kind() == m.Kind() && now2.Cardinality() == m.Cardinality()
				})
			}
		}
		for i := range f.Enums().Len() {
			for j := range f.Enums().Get(i).Values().Len() {
				m := f.Enums().Get(i).Values().Get(j)
				n += same(t, m, func(now protoreflect.Descriptor) bool {
					return now.(protoreflect.EnumValueDescriptor).Number() == m.Number()
				})
			}
		}
		return true
	})
	if n < 60 {
		t.Errorf("the released protocol has only %d methods, fields and values", n)
	}
}

// same compares a part of the released protocol with what it is now.
func same(t *testing.T, was protoreflect.Descriptor, like func(now protoreflect.Descriptor) bool) int {
	t.Helper()
	now, err := protoregistry.GlobalFiles.FindDescriptorByName(was.FullName())
	if err != nil || !like(now) {
		t.Errorf("%s is not what was released: %v", was.FullName(), err)
	}
	return 1
}
